"""From rankings to preferences and to agreement, computed by hand."""

from __future__ import annotations

import json

import pytest

from llmft.api.errors import DataError
from llmft.ranking import Decision, Ratings, agreement, combine, preferences
from llmft.ranking.combining import doubled_ranks
from llmft.ranking.samples import sample_of

ABC = sample_of("p", ["a", "b", "c"], ["a"])


def ranked(*rankings, sample=ABC):
    """Return the ratings of as many raters; None is 'all bad'."""
    whole = [list(range(len(sample.completions)))]
    return Ratings({
        f"r{number}": {
            sample.id: Decision(
                sample.id, tuple(map(tuple, ranking or whole)), ranking is None, "", 1.0
            )
        }
        for number, ranking in enumerate(rankings)
    })  # fmt: skip


def pairs(*rankings, sample=ABC, which="all"):
    rows = preferences([sample], ranked(*rankings, sample=sample), which)
    return [(row["chosen"], row["rejected"], row["margin"]) for row in rows]


def test_one_ranking_makes_every_pair_with_its_margin():
    assert pairs([[2], [0], [1]]) == [("c", "a", 0.5), ("c", "b", 1.0), ("a", "b", 0.5)]
    [row, *_] = preferences([ABC], ranked([[0], [1], [2]]))
    assert row == {
        "prompt": "p", "chosen": "a", "rejected": "b", "margin": 0.5, "answers": ["a"],
    }  # fmt: skip


def test_the_best_and_the_worst_alone():
    assert pairs([[2], [0], [1]], which="best_worst") == [("c", "b", 1.0)]
    assert pairs([[0, 1, 2]], which="best_worst") == []


def test_a_tie_makes_no_pair_and_shares_its_places():
    assert doubled_ranks(ABC, ranked([[0, 1], [2]]).by_rater["r0"][ABC.id]) == [3, 3, 6]
    assert pairs([[0, 1], [2]]) == [("a", "c", 0.75), ("b", "c", 0.75)]
    assert combine([ABC], ranked([[0, 1], [2]])).counts["tied"] == 1


def test_several_raters_are_combined_by_mean_rank():
    # Ranks a 1 2, b 2 1, c 3 3: means 1.5, 1.5, 3; a and b are even.
    assert pairs([[0], [1], [2]], [[1], [0], [2]]) == [("a", "c", 0.75), ("b", "c", 0.75)]
    # Ranks a 1 1 2, b 2 2 1, c 3 3 3: means 4/3, 5/3, 3.
    found = pairs([[0], [1], [2]], [[0], [1], [2]], [[1], [0], [2]])
    assert found == [
        ("a", "b", round(1 / 6, 6)), ("a", "c", round(5 / 6, 6)), ("b", "c", round(4 / 6, 6)),
    ]  # fmt: skip
    # One has no opinion on a and b: ranks a 1 1.5, b 2 1.5, c 3 3.
    assert pairs([[0], [1], [2]], [[0, 1], [2]])[0] == ("a", "b", 0.25)


def test_raters_who_disagree_evenly_make_no_pair_though_mean_ranks_differ():
    # a > b > c and c > a > b: a beats b twice; on the others it is one against one.
    combined = combine([ABC], ranked([[0], [1], [2]], [[2], [0], [1]]))
    assert [(row["chosen"], row["rejected"]) for row in combined.rows] == [("a", "b")]
    assert (combined.counts["undecided"], combined.counts["tied"]) == (2, 0)


def test_a_sample_that_half_of_its_raters_call_all_bad_makes_no_pair_and_is_counted():
    combined = combine([ABC], ranked([[0], [1], [2]], None))
    assert combined.rows == []
    assert combined.counts["all_bad"] == 1
    # One of three: it counts as a tie of all; ranks a 1 1 2, b 2 2 2, c 3 3 2.
    found = pairs([[0], [1], [2]], [[0], [1], [2]], None)
    assert found[1] == ("a", "c", round((8 - 4) / 3 / 2, 6))


def test_equal_answers_count_once():
    sample = sample_of("p", ["x", "y", "x ", "z"])
    assert pairs([[0, 2], [1], [3]], sample=sample) == [
        ("x", "y", 0.5), ("x", "z", 1.0), ("y", "z", 0.5),
    ]  # fmt: skip


def test_an_answer_without_text_makes_no_pair_and_is_counted():
    sample = sample_of("p", ["x", " ", "y"])
    combined = combine([sample], ranked([[0], [2], [1]], sample=sample))
    assert [(row["chosen"], row["rejected"]) for row in combined.rows] == [("x", "y")]
    assert combined.counts["empty"] == 2


def test_decisions_on_other_samples_do_not_count_and_misfits_are_named():
    other = sample_of("q", ["a", "b", "c"])
    assert combine([other], ranked([[0], [1], [2]])).counts["rated"] == 0
    with pytest.raises(DataError, match="rater 'r0' does not rank all answers"):
        combine([ABC], ranked([[0], [1]]))


def test_the_preference_dataset_reads_what_is_written(tmp_path):
    from llmft_datasets.preference import Preference

    chat = sample_of([{"role": "user", "content": "hi"}], ["good", "bad"], ["good"])
    rows = preferences([ABC, chat], Ratings({
        "r": ranked([[2], [0], [1]]).by_rater["r0"]
        | ranked([[0], [1]], sample=chat).by_rater["r0"]
    }))  # fmt: skip
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"margin": "margin", "answers": "answers"}
    dataset = Preference(Preference.Config(method="preference", path=str(path), columns=columns))
    read = [dataset.row(record, origin) for origin, record in dataset.records("train")]
    assert [(row.chosen, row.rejected, row.margin) for row in read] == [
        ("c", "a", 0.5), ("c", "b", 1.0), ("a", "b", 0.5), ("good", "bad", 1.0),
    ]  # fmt: skip
    assert read[-1].prompt == ({"role": "user", "content": "hi"},)


def test_agreement_is_krippendorffs_alpha():
    # Two raters, two samples of two answers; they agree on one and not on the other. Values 1 and
    # 2 stand 4 times each; 2 coincidences of 8 are off the diagonal: 1 - 7 * 2 / (4 * 4).
    one, two = sample_of("1", ["a", "b"]), sample_of("2", ["a", "b"])
    first, other = ((0,), (1,)), ((1,), (0,))

    def rater(*rankings):
        both = zip((one, two), rankings, strict=True)
        return {s.id: Decision(s.id, r, False, "", 1.0) for s, r in both}

    ratings = Ratings({"x": rater(first, first), "y": rater(first, other)})
    assert agreement([one, two], ratings) == pytest.approx(1 - 7 * 2 / 16)
    # Ranks 1 2 3 and 1 3 2: each rank twice, squared ordinal distances 4, 4 and 16.
    found = agreement([ABC], ranked([[0], [1], [2]], [[0], [2], [1]]))
    assert found == pytest.approx(1 - 5 * (2 * 4) / (4 * 4 + 4 * 16 + 4 * 4))
    assert agreement([ABC], ranked([[1], [0], [2]], [[1], [0], [2]])) == pytest.approx(1)
    assert agreement([ABC], ranked([[0], [1], [2]], [[2], [1], [0]])) < 0


def test_there_is_no_agreement_of_one_rater_or_without_any_preference():
    assert agreement([ABC], ranked([[0], [1], [2]])) is None
    assert agreement([ABC], Ratings()) is None
    assert agreement([ABC], ranked(None, None)) is None
