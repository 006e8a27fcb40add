"""The jsonl tracker: one JSON line for each logged metric, in the stage's folder."""

from __future__ import annotations

import json
import math
from pathlib import Path

from llmft_trackers.jsonl import Jsonl

from llmft.api import Progress, RunInfo, StageInfo


def started(folder: Path) -> Jsonl:
    tracker = Jsonl(Jsonl.Config())
    tracker.run_started(RunInfo("r", folder, {}, ("sft",)))
    return tracker


def lines(folder: Path, stage: str = "sft") -> list[dict[str, object]]:
    path = folder / "stages" / stage / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_logged_step_is_one_line_at_once(tmp_path):
    tracker = started(tmp_path)
    tracker.progress(Progress("sft", "train", 10, 20, {"loss": 0.5}, logged=True))
    assert lines(tmp_path) == [{"stage": "sft", "step": 10, "phase": "train", "loss": 0.5}]


def test_a_step_that_is_not_logged_writes_nothing(tmp_path):
    started(tmp_path).progress(Progress("sft", "train", 10, 20, {"loss": 0.5}))
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_not_finite_are_null(tmp_path):
    tracker = started(tmp_path)
    metrics = {"loss": math.nan, "perplexity": math.inf}
    tracker.progress(Progress("sft", "train", 1, 2, metrics, logged=True))
    assert lines(tmp_path)[0]["loss"] is None
    assert lines(tmp_path)[0]["perplexity"] is None


def test_scores_are_written_with_the_step_they_belong_to(tmp_path):
    tracker = started(tmp_path)
    tracker.scored("sft", "before", {"exact_match": 0.0})
    tracker.progress(Progress("sft", "train", 20, 20, {"loss": 0.5}, logged=True))
    tracker.scored("sft", "after", {"exact_match": 0.6})
    assert lines(tmp_path)[0] == {
        "stage": "sft", "step": 0, "phase": "score_before", "exact_match": 0.0,
    }  # fmt: skip
    assert lines(tmp_path)[2]["step"] == 20


def test_scores_after_the_last_step_of_an_earlier_process_are_written_with_that_step(tmp_path):
    tracker = started(tmp_path)
    tracker.stage_started(StageInfo("sft", "lora", "sft", 1, 2, 3, 4, 5, steps=20))
    tracker.scored("sft", "before", {"exact_match": 0.0})
    tracker.scored("sft", "after", {"exact_match": 0.6})
    assert [line["step"] for line in lines(tmp_path)] == [0, 20]


def test_a_metric_cannot_overwrite_what_says_where_it_belongs(tmp_path):
    started(tmp_path).progress(Progress("sft", "train", 3, 9, {"step": 7.0}, logged=True))
    assert lines(tmp_path) == [{"stage": "sft", "step": 3, "phase": "train"}]


def test_each_stage_has_a_file_and_a_later_run_appends(tmp_path):
    for _ in range(2):
        tracker = started(tmp_path)
        for stage in ("sft", "reward"):
            tracker.progress(Progress(stage, "train", 1, 1, {"loss": 1.0}, logged=True))
            tracker.stage_finished(stage, {})
        tracker.run_finished({})
    assert len(lines(tmp_path, "sft")) == len(lines(tmp_path, "reward")) == 2


def test_a_line_torn_by_a_kill_spoils_none_after_it(tmp_path):
    path = tmp_path / "stages" / "sft" / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"stage": "sft", "st')
    started(tmp_path).progress(Progress("sft", "train", 2, 2, {"loss": 1.0}, logged=True))
    assert json.loads(path.read_text().splitlines()[1])["step"] == 2
