"""What is ranked, and the decisions on disk."""

from __future__ import annotations

import errno
import json
import os

import pytest

from llmft.api.errors import DataError, EnvironmentFault, RecipeError, TrustError
from llmft.ranking import RATINGS, read_ratings, read_samples, remaining
from llmft.ranking.log import rater_log
from llmft.ranking.ranking_session import Session
from llmft.ranking.samples import sample_of
from llmft.system import fsio

from .conftest import ROWS, lines


def test_an_item_is_known_by_its_prompt_and_completions_wherever_it_stands(samples, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in [*reversed(ROWS), ROWS[0]]))
    assert [s.id for s in read_samples(other)] == [s.id for s in reversed(samples)]
    assert sample_of("Capital of Norway?", ["Lima", "Oslo"]).id != samples[0].id


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "completions": ["a"]}, "1 completions"),
        ({"prompt": "p", "completions": ["a"] * 27}, "27 completions"),
        ({"prompt": "p", "completions": ["a", 1]}, "no list of texts"),
        ({"prompt": "", "completions": ["a", "b"]}, "prompt is missing"),
        ({"prompt": [{"role": "user"}], "completions": ["a", "b"]}, "no list of messages"),
        ({"prompt": "p", "completions": ["a", "b"], "answers": "a"}, "'answers'"),
    ],
)
def test_rows_that_cannot_be_ranked_are_named_all_at_once(tmp_path, row, said):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(row)}\n" * 2)
    with pytest.raises(DataError, match=said) as caught:
        read_samples(path)
    assert [f"{path}:{n}" in fault.what for n, fault in enumerate(caught.value.faults, 1)] == [
        True
    ] * 2


def test_a_decision_is_a_line_that_names_completions(session, ratings, samples):
    shown = session.show(0)
    session.decide(shown.sample.id, [[2], [0, 3], [1]], False, 3.25)
    [line] = lines(ratings)
    texts = [[samples[0].completions[i] for i in group] for group in line["ranking"]]
    assert texts[0] == [shown.texts[2]]
    assert sorted(texts[1]) == sorted([shown.texts[0], shown.texts[3]])
    assert line["item"] == samples[0].id
    assert (line["all_bad"], line["seconds"]) == (False, 3.2)
    assert line["time"].endswith("+00:00")


def test_equal_answers_are_shown_once_and_tied_by_themselves(session, samples, ratings):
    shown = session.show(1)
    assert sorted(zip(shown.texts, shown.copies, strict=True))[-1] == ("snow", 2)
    assert len(shown.texts) == 3
    snow = shown.texts.index("snow")
    rest = [[n] for n in range(3) if n != snow]
    session.decide(shown.sample.id, [*rest, [snow]], False, 0)
    assert lines(ratings)[0]["ranking"][-1] == [0, 2]
    assert session.show(1).ranking == [*rest, [snow]]


def test_answers_that_are_all_the_same_are_not_asked_about(session, samples):
    assert len(samples) == 4
    assert len(session.samples) == 3


def test_the_order_of_the_answers_is_each_raters_own_and_stays(samples, ratings):
    def order(rater):
        with rater_log(ratings, rater) as log:
            return Session(samples, rater, log).show(0).texts

    raters = [f"r{number}" for number in range(200)]
    orders = [order(rater) for rater in raters]
    assert orders[:5] == [order(rater) for rater in raters[:5]]
    first = [order[0] for order in orders]
    # 50 of 200 are expected for each, with a standard deviation of 6.1.
    assert all(25 < first.count(text) < 75 for text in samples[0].completions)


def test_the_last_line_of_an_item_wins(session, ratings, samples):
    item = samples[2].id
    session.decide(item, [[0], [1]], False, 1)
    session.decide(item, [[1], [0]], False, 1)
    assert len(lines(ratings)) == 2
    last = read_ratings(ratings).by_rater["anna"][item]
    assert [list(group) for group in last.ranking] == lines(ratings)[1]["ranking"]
    assert session.show(2).ranking == [[1], [0]]


def test_what_was_decided_is_there_again(samples, ratings):
    with rater_log(ratings, "anna") as log:
        Session(samples, "anna", log).decide(samples[0].id, [[0, 1, 2, 3]], True, 1)
    with rater_log(ratings, "anna") as log:
        back = Session(samples, "anna", log)
        assert back.next_unrated() == 1
        assert (back.rated, back.show(0).all_bad) == (1, True)
    assert [s.id for s in remaining(samples, read_ratings(ratings), "anna")] == [
        samples[1].id, samples[2].id,
    ]  # fmt: skip
    assert len(remaining(samples, read_ratings(ratings), "ben")) == 3


def test_a_limit_offers_so_many_of_those_that_are_left(samples, ratings):
    with rater_log(ratings, "anna") as log:
        Session(samples, "anna", log).decide(samples[0].id, [[0, 1, 2, 3]], True, 1)
        few = Session(samples, "anna", log, limit=1)
        assert [s.id for s in few.samples] == [samples[1].id]
        assert few.left_in_file == 2


def test_a_line_that_a_kill_cut_short_is_left_out_told_and_mended(session, samples, ratings):
    session.decide(samples[0].id, [[0], [1], [2], [3]], False, 1)
    path = ratings / "ben.jsonl"
    whole = (ratings / "anna.jsonl").read_bytes()
    path.write_bytes(whole + whole[:50])
    found = read_ratings(ratings)
    assert len(found.by_rater["ben"]) == 1
    assert f"the last line of '{path}' is incomplete" in found.remarks[0]
    with rater_log(ratings, "ben") as log:
        Session(samples, "ben", log).decide(samples[2].id, [[0], [1]], False, 1)
    assert path.read_bytes().startswith(whole)
    assert [line["item"] for line in lines(ratings, "ben")] == [samples[0].id, samples[2].id]
    assert read_ratings(ratings).remarks == ()


@pytest.mark.parametrize(
    "line",
    ["not json", "[]", '{"item": "a"}', "null",
     '{"item": "a", "ranking": [[0], [0]], "all_bad": false, "time": "", "seconds": 1}',
     '{"item": "a", "ranking": [[0], [2]], "all_bad": false, "time": "", "seconds": 1}',
     '{"item": "a", "ranking": [[0], []], "all_bad": false, "time": "", "seconds": 1}',
     '{"item": "a", "ranking": [[true]], "all_bad": false, "time": "", "seconds": 1}',
     '{"item": "a", "ranking": [[0]], "all_bad": 0, "time": "", "seconds": 1}',
     '{"item": "a", "ranking": [[0]], "all_bad": true, "time": "", "seconds": NaN}',
     '{"item": "a", "ranking": [[0]], "all_bad": true, "time": "", "seconds": 1%s}' % ("0" * 400),
     "[" * 100_000],
)  # fmt: skip
def test_a_whole_line_that_is_no_decision_is_an_error_with_its_place(tmp_path, line):
    folder = tmp_path / RATINGS
    folder.mkdir()
    (folder / "anna.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=r"anna\.jsonl:1: this is not a decision"):
        read_ratings(folder)


@pytest.mark.parametrize(
    ("groups", "all_bad", "seconds"),
    [
        ([[0], [1], [2]], False, 1), ([[0, 1, 2, 3, 4]], False, 1), ([], False, 1),
        ([[0], [0], [1], [2]], False, 1), ("0123", False, 1), (None, False, 1),
        ([[0.0], [1], [2], [3]], False, 1), ([[-1], [0], [1], [2]], False, 1),
        ([[0], [1], [2], [3], []], False, 1), ([[0, 1, 2, 3]], "no", 1),
        ([[0, 1, 2, 3]], False, "1"), ([[0, 1, 2, 3]], False, float("nan")),
    ],
)  # fmt: skip
def test_what_is_no_ranking_of_the_answers_is_not_saved(session, ratings, groups, all_bad, seconds):
    with pytest.raises(ValueError, match=r"ranking|all_bad|seconds"):
        session.decide(session.samples[0].id, groups, all_bad, seconds)
    assert lines(ratings) == []


@pytest.mark.parametrize("name", ["../x", "a/b", "", "a.b", "-x", "x" * 41, "é", "a\n"])
def test_a_raters_name_is_safe_for_a_file(ratings, name):
    with pytest.raises(RecipeError, match="name of a rater"), rater_log(ratings, name):
        pass
    assert not ratings.exists()


def test_one_process_at_a_time_writes_a_raters_file(ratings):
    with (
        rater_log(ratings, "anna"),
        rater_log(ratings, "ben"),
        pytest.raises(EnvironmentFault, match="in use by process"),
        rater_log(ratings, "anna"),
    ):
        pass


def test_a_line_is_written_and_then_synced_and_then_its_folder(tmp_path, monkeypatch):
    events = []
    for name in ("write", "fsync"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, _r=real, _n=name: events.append(_n) or _r(*args)
        )
    path = tmp_path / "a.jsonl"
    fsio.append_line(path, "one")
    assert events == ["write", "fsync", "fsync"]
    events.clear()
    fsio.append_line(path, "two")
    assert events == ["write", "fsync"]
    assert path.read_text() == "one\ntwo\n"


def test_a_line_that_cannot_be_synced_leaves_the_file_and_the_session_as_they_were(
    session, samples, ratings, monkeypatch
):
    session.decide(samples[0].id, [[0], [1], [2], [3]], False, 1)
    before = lines(ratings)

    def full(*_):
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(EnvironmentFault, match="no space left"):
            session.decide(samples[2].id, [[0], [1]], False, 1)
    assert lines(ratings) == before
    assert session.rated == 1
    session.decide(samples[2].id, [[0], [1]], False, 1)
    assert len(lines(ratings)) == 2


def test_ratings_without_an_end_are_refused(samples_file, ratings):
    ratings.mkdir()
    (ratings / "x.jsonl").touch()
    os.truncate(ratings / "x.jsonl", 2**40)
    with pytest.raises(TrustError, match="more than"):
        read_ratings(ratings)
