"""The file that `llmft watch` reads: whole at any time, seldom written, and never in the way."""

from __future__ import annotations

import json
import os

import pytest

from llmft.api import Progress, RunInfo
from llmft.engine import progress_file
from llmft.engine.progress_file import ProgressFile
from llmft.reporting.watching import PROGRESS


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress_file.time, "time", lambda: now[0])
    return now


@pytest.fixture
def kept(tmp_path, clock):
    found = ProgressFile()
    found.run_started(RunInfo("x", tmp_path, {}, ("sft",)))
    return found


def read(folder):
    return json.loads((folder / PROGRESS).read_text())


def test_a_phase_is_told_with_its_beginning_and_its_last_metrics(kept, tmp_path, clock):
    kept.progress(Progress("sft", "train", 5, 9))
    clock[0] = 1003.0
    kept.progress(Progress("sft", "train", 6, 9, {"loss": 2.0, "x": float("nan")}, True))
    assert read(tmp_path) == {
        "stage": "sft", "phase": "train", "done": 6, "total": 9, "first": 5, "began": 1000.0,
        "at": 1003.0, "metrics": {"loss": 2.0},
    }  # fmt: skip
    kept.progress(Progress("sft", "evaluate", 0, 1))
    assert read(tmp_path)["began"] == 1003.0
    assert "metrics" not in read(tmp_path)


def test_it_is_written_once_a_second_and_at_the_ends(kept, tmp_path, clock):
    kept.progress(Progress("sft", "train", 0, 9))
    kept.progress(Progress("sft", "train", 1, 9))
    assert read(tmp_path)["done"] == 0
    clock[0] += 1.0
    kept.progress(Progress("sft", "train", 2, 9))
    assert read(tmp_path)["done"] == 2
    kept.progress(Progress("sft", "train", 3, 9))
    assert read(tmp_path)["done"] == 2
    kept.run_finished({})
    assert read(tmp_path)["done"] == 3
    kept.progress(Progress("sft", "train", 9, 9))
    assert read(tmp_path)["done"] == 9


def test_a_longer_text_leaves_nothing_behind(kept, tmp_path, clock):
    (tmp_path / PROGRESS).write_text("y" * 5000)
    kept.progress(Progress("sft", "a long name of a phase" * 9, 0, 9))
    kept.progress(Progress("sft", "short", 0, 9))
    assert read(tmp_path)["phase"] == "short"


def test_where_it_cannot_be_written_the_run_goes_on(kept, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "no space left")

    monkeypatch.setattr(os, "pwrite", full)
    kept.progress(Progress("sft", "train", 0, 9))
    kept.progress(Progress("sft", "evaluate", 0, 9))
    kept.run_finished({})


def test_a_link_in_its_place_is_not_followed(kept, tmp_path):
    from llmft.api.errors import TrustError

    (tmp_path / "other").write_text("kept")
    (tmp_path / PROGRESS).symlink_to(tmp_path / "other")
    with pytest.raises(TrustError):  # the tracker is left out, as any that fails
        kept.progress(Progress("sft", "train", 0, 9))
    assert (tmp_path / "other").read_text() == "kept"
