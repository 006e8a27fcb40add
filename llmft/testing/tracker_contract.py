"""The contract of a tracker, as tests: it takes what a run tells, and keeps to the run's folder."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from llmft import api
from llmft.api.kinds import Kind
from llmft.testing.config_checks import SettingsContract

ODD_METRICS: tuple[Mapping[str, float], ...] = (
    {},
    {"loss": 2.5, "learning_rate": 2e-4, "grad_norm": 0.0},
    {"loss": math.nan, "grad_norm": math.inf, "reward": -math.inf},
    {"a/b c:d": -0.0, "größe": 1e308, "x" * 300: 1e-308},
)


class TrackerContract(SettingsContract):
    """Checks that a tracker hears whole runs and broken ones, and writes below the run's folder."""

    kind: ClassVar[Kind] = "tracker"

    def test_it_hears_a_whole_run(self, settings: Mapping[str, Any], tmp_path: Path) -> None:
        tracker, run = self.make(settings), _run(tmp_path)
        with _writes() as written:
            tracker.run_started(run)
            for stage in run.stages:
                _tell_stage(tracker, stage)
            tracker.note("a remark, with {braces}, [brackets] and\ntwo lines — ß🙂")
            tracker.run_finished({"run": run.name, "folder": str(run.folder), "stages": []})
        _only_below(run.folder, written)

    def test_it_hears_a_run_that_ends_early(
        self, settings: Mapping[str, Any], tmp_path: Path
    ) -> None:
        run = _run(tmp_path)
        with _writes() as written:
            tracker = self.make(settings)
            tracker.run_started(run)
            tracker.run_finished({})
            tracker = self.make(settings)
            tracker.run_started(run)
            tracker.stage_started(_stage("sft", rows=0))
            tracker.progress(api.Progress("sft", "train", 0, 0))
            tracker.run_finished({"error": "E500", "what": "the loss is not finite"})
        _only_below(run.folder, written)

    def test_it_hears_odd_numbers(self, settings: Mapping[str, Any], tmp_path: Path) -> None:
        tracker, run = self.make(settings), _run(tmp_path)
        tracker.run_started(run)
        tracker.stage_started(_stage("sft"))
        for metrics in ODD_METRICS:
            for when in ("before", "after"):
                tracker.scored("sft", when, metrics)
            for logged in (False, True):
                tracker.progress(api.Progress("sft", "train", 3, 0, metrics, logged))
            tracker.stage_finished("sft", {"metrics": dict(metrics), "steps": 0})
        tracker.run_finished({"scores": list(map(dict, ODD_METRICS))})

    def test_it_declares_a_host_that_a_person_can_read(self, settings: Mapping[str, Any]) -> None:
        host = self.make(settings).contacts
        assert host is not None, "state `contacts`: the host that it talks to, or '' for none"
        assert isinstance(host, str), "contacts is the name of a network host, or ''"
        bare = not any(mark in host for mark in "/@ \n")
        assert bare, f"'{host}' is no host's name: leave the scheme, the path and the user out"

    def test_it_changes_nothing_it_hears(self, settings: Mapping[str, Any], tmp_path: Path) -> None:
        tracker = self.make(settings)
        tracker.run_started(_run(tmp_path))
        tracker.stage_started(_stage("sft"))
        metrics, result = {"loss": 1.0}, {"steps": 3, "metrics": {"loss": 1.0}}
        tracker.progress(api.Progress("sft", "train", 1, 3, metrics, True))
        tracker.scored("sft", "after", metrics)
        tracker.stage_finished("sft", result)
        tracker.run_finished({})
        assert metrics == {"loss": 1.0}, "the tracker changed the metrics"
        assert result == {"steps": 3, "metrics": {"loss": 1.0}}, "the tracker changed the result"


def _run(parent: Path) -> api.RunInfo:
    folder = parent / "runs" / "odd name ß"
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {"recipe": 1, "name": "trivia", "seed": 17, "stages": [{"name": "sft"}]}
    return api.RunInfo("trivia", folder, recipe, ("sft", "dpo"))


def _stage(name: str, rows: int = 40) -> api.StageInfo:
    return api.StageInfo(
        name=name, adapter="lora", alignment="sft", trainable_parameters=1_000,
        total_parameters=28_000, rows=rows, tokens=rows * 30, trained_tokens=rows * 5, steps=rows,
        notes=("a note",),
    )  # fmt: skip


def _tell_stage(tracker: Any, stage: str) -> None:
    tracker.stage_started(_stage(stage))
    tracker.scored(stage, "before", {"exact_match": 0.0, "f1": 0.1})
    for step in range(1, 31):
        metrics = {"loss": 3.0 / step, "learning_rate": 1e-4} if step % 10 == 0 else {}
        tracker.progress(api.Progress(stage, "train", step, 30, metrics, bool(metrics)))
    tracker.progress(api.Progress(stage, "evaluate", 5, 10))
    tracker.scored(stage, "after", {"exact_match": 0.5, "f1": 0.6})
    tracker.stage_finished(stage, {"produces": "policy", "steps": 30, "metrics": {"loss": 0.1}})


_listening: list[list[str]] = []
_hooked: list[bool] = []


@contextlib.contextmanager
def _writes() -> Iterator[list[str]]:
    """Collect the paths that are opened for writing, made, or renamed to.

    A bare name is one of the working folder, or of a folder that is open already (`dir_fd`), and
    Python does not tell which: the block works in an empty folder, and what it leaves there is
    collected.
    """
    if not _hooked:  # an audit hook stays for the life of the process: one is enough
        sys.addaudithook(_heard)
        _hooked.append(True)
    paths: list[str] = []
    with tempfile.TemporaryDirectory() as empty:
        _listening.append(paths)
        try:
            with contextlib.chdir(empty):
                yield paths
        finally:
            _listening.remove(paths)
            paths += [os.path.join(empty, name) for name in os.listdir(empty)]


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if not _listening:
        return
    path: Any = None
    if event == "open":
        path, mode, flags = arguments
        writing = any(letter in (mode or "") for letter in "wax+")
        if not writing and not (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
    elif event == "os.mkdir":
        path = arguments[0]
    elif event == "os.rename":
        path = arguments[1]
    if isinstance(path, str | bytes | os.PathLike) and os.path.dirname(path):
        for paths in _listening:
            paths.append(os.path.abspath(os.fsdecode(path)))


def _only_below(folder: Path, written: list[str]) -> None:
    allowed = (str(folder.resolve()), str(folder), os.devnull, "/dev/tty")
    # Python itself writes __pycache__ when the tracker imports a module for the first time.
    outside = [p for p in written if not p.startswith(allowed) and "__pycache__" not in p]
    if outside:
        pytest.fail(f"the tracker writes outside the run's folder: {sorted(set(outside))}")
