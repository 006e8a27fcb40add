"""`llmft rank --judge`: a rule or a reward model is one more rater beside people."""

from __future__ import annotations

import json

import pytest

from llmft.cli.main import main
from llmft.ranking import read_ratings, read_samples
from llmft.ranking.log import rater_log
from llmft.ranking.ratings import Decision


def ranked(samples_file, capsys, *words):
    code = main(["rank", str(samples_file), "--json", *words])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def test_a_rule_ranks_everything_that_can_be_ranked(samples_file, ratings, samples, capsys):
    code, told, _ = ranked(samples_file, capsys, "--judge", "exact_match")
    assert (code, told["unrated"]) == (0, 0)
    (rater,) = told["raters"]
    assert (rater["rater"], rater["rated"], rater["left"]) == ("judge-exact_match", 3, 0)
    decisions = read_ratings(ratings).by_rater["judge-exact_match"]
    first = decisions[samples[0].id]
    assert first.ranking == ((0,), (1, 2, 3))  # Oslo is right, and the others are not
    assert first.time
    assert not first.all_bad


def test_settings_reach_the_rule_and_a_second_time_replaces_the_first(
    samples_file, ratings, samples, capsys
):
    for target, best in ((3, 1), (4, 0)):  # 'red' has three letters, 'blue' four
        words = ("--judge", f"length:target={target},unit=characters")
        assert ranked(samples_file, capsys, *words)[0] == 0
        decisions = read_ratings(ratings).by_rater["judge-length"]
        assert len(decisions) == 3
        assert decisions[samples[2].id].ranking[0] == (best,)


def test_a_judge_stands_beside_people_and_agreement_is_told(samples, samples_file, ratings, capsys):
    order = tuple((i,) for i in range(len(samples[0].completions)))
    with rater_log(ratings, "anna") as log:
        log.add(Decision(samples[0].id, order, False, "2026-01-01", 1.0))
    code, told, _ = ranked(samples_file, capsys, "--judge", "length:target=1")
    assert code == 0
    assert {rater["rater"] for rater in told["raters"]} == {"anna", "judge-length"}
    assert told["counts"]["rated_by_two"] == 1
    assert isinstance(told["agreement"], float)


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        ("exact_mach", "E504", "did you mean 'exact_match'"),
        ("length", "E090", "target: field required"),
        ("length:target=0", "E090", "greater than or equal to 1"),
        ("length:target=five", "E090", "target"),
        ("length:taget=5", "E090", "taget"),
        ("length:5", "E090", "'5' is not key=value"),
    ],
)
def test_a_judge_that_cannot_be_is_an_error_that_says_why(
    samples_file, ratings, capsys, asked, code, said
):
    exit_code, told, _ = ranked(samples_file, capsys, "--judge", asked)
    assert exit_code == 2
    error = told["errors"][0]
    assert error["code"] == code
    assert said in error["what"] + error["fix"]
    assert not list(ratings.glob("*.jsonl"))


def test_samples_without_a_difference_are_refused(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completions": ["x", "x"]}) + "\n")
    code, told, _ = ranked(path, capsys, "--judge", "exact_match")
    assert (code, told["errors"][0]["code"]) == (3, "E110")
    assert read_samples(path)
