"""The tensorboard tracker: event files that TensorBoard reads, a folder for each stage."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import pytest
from llmft_trackers import tensorboard
from llmft_trackers.tensorboard import TensorBoard
from tensorboardX.proto.event_pb2 import Event, SessionLog

from llmft.api import EnvironmentFault, Progress, RunInfo, StageInfo
from llmft.testing import TrackerContract

STAGE = StageInfo("sft", "lora", "sft", 1_000, 100_000, 900, 12_000, 3_000, 20)


class TestTensorBoardContract(TrackerContract):
    method_class = TensorBoard
    configs = [{"flush_secs": 5}]


def started(folder: Path) -> TensorBoard:
    tracker = TensorBoard(TensorBoard.Config())
    tracker.run_started(RunInfo("r", folder, {}, ("sft",)))
    tracker.stage_started(STAGE)
    return tracker


def events(folder: Path, stage: str = "sft") -> list[Event]:
    """Return what the event files hold: records of length, its sum, the event and its sum."""
    found = []
    for path in sorted((folder / "tensorboard" / stage).iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack("<Q", data[at : at + 8])
            event = Event()
            event.ParseFromString(data[at + 12 : at + 12 + length])
            found.append(event)
            at += length + 16
    return found


def scalars(folder: Path, stage: str = "sft") -> list[tuple[str, int, float]]:
    return [
        (value.tag, event.step, value.simple_value)
        for event in events(folder, stage)
        for value in event.summary.value
    ]


def test_a_run_becomes_a_curve_for_each_metric_on_the_stages_own_steps(tmp_path):
    tracker = started(tmp_path)
    tracker.scored("sft", "before", {"exact_match": 0.125})
    tracker.progress(Progress("sft", "train", 1, 20, {"loss": 9.0}))
    tracker.progress(Progress("sft", "train", 2, 20, {"loss": 0.5, "grad_norm": 3.0}, logged=True))
    tracker.progress(Progress("sft", "score", 2, 20, {"loss": 0.75}, logged=True))
    tracker.scored("sft", "after", {"exact_match": 0.875})
    tracker.stage_finished("sft", {})
    tracker.progress(Progress("dpo", "train", 1, 20, {"loss": 0.25}, logged=True))
    tracker.run_finished({"status": "done"})
    assert scalars(tmp_path) == [
        ("before/exact_match", 0, 0.125),
        ("train/loss", 2, 0.5),
        ("train/grad_norm", 2, 3.0),
        ("score/loss", 2, 0.75),
        ("after/exact_match", 2, 0.875),
    ]
    assert scalars(tmp_path, "dpo") == [("train/loss", 1, 0.25)]


def test_what_a_killed_run_had_written_after_its_checkpoint_is_hidden(tmp_path):
    tracker = started(tmp_path)
    for step in (1, 2, 3):
        tracker.progress(Progress("sft", "train", step, 20, {"loss": 1.0}, logged=True))
    tracker.run_finished({"error": "killed"})
    again = started(tmp_path)
    again.progress(Progress("sft", "train", 3, 20, {"loss": 0.5}, logged=True))
    again.run_finished({"status": "done"})
    marks = [e.step for e in events(tmp_path) if e.session_log.status == SessionLog.START]
    assert marks == [3]


def test_scores_of_a_run_that_goes_on_after_its_last_step_have_that_step(tmp_path):
    tracker = started(tmp_path)
    tracker.scored("sft", "after", {"exact_match": 0.5})
    tracker.run_finished({"status": "done"})
    assert scalars(tmp_path) == [("after/exact_match", 20, 0.5)]


def test_a_number_that_is_not_finite_stays_what_it_is(tmp_path):
    tracker = started(tmp_path)
    tracker.progress(Progress("sft", "train", 1, 2, {"loss": math.nan}, logged=True))
    tracker.run_finished({"status": "done"})
    ((_, _, value),) = scalars(tmp_path)
    assert math.isnan(value)


def test_a_run_that_logs_nothing_writes_nothing(tmp_path):
    started(tmp_path).run_finished({"status": "done"})
    assert list(tmp_path.iterdir()) == []


def test_the_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="needs the package tensorboardX"):
        TensorBoard.Config()
