"""A whole run, told to a tracker that reports by a process of its own."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmft.api import Progress, RunInfo, StageInfo

STAGE = StageInfo("sft", "lora", "sft", 1_000, 100_000, 900, 12_000, 3_000, 20)
RECIPE = {"recipe": 1, "name": "trivia", "seed": 17, "stages": [{"name": "sft"}]}
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def moved_in(monkeypatch: Any, folder: Path, prefix: str, *names: str) -> None:
    """Give the test an empty home, and an environment without a tracker's variables or a proxy.

    The tracker's package counts as installed, as a recipe is read.
    """
    (folder / "home").mkdir()
    monkeypatch.setenv("HOME", str(folder / "home"))
    for name in (*(f"{prefix}_{name}" for name in names), *PROXIES, *map(str.lower, PROXIES)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("llmft_trackers.reporter.find_spec", lambda name: True)


def told(
    monkeypatch: Any, make: Callable[[], Any], folder: Path, recipe: Any = RECIPE, first: int = 1
) -> tuple[str, float]:
    """Tell a whole run; return what was said, and the longest wait while it ran, in seconds.

    make: makes the tracker, which keeps the standard output that it finds. first: the step at which
    the run begins, or goes on.
    """
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    tracker = make()
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    tracker.run_started(RunInfo("trivia", folder, recipe, ("sft",)))
    tracker.note("a remark")
    tracker.stage_started(STAGE)
    tracker.scored("sft", "before", {"exact_match": 0.125})
    for step in range(first, first + 3):
        metrics = {"loss": 0.0625 * step}
        tracker.progress(Progress("sft", "train", step, 20, metrics, logged=True))
    tracker.stage_finished("sft", {"metrics": {"train_loss": 0.5}})
    ran = time.monotonic() - began
    process = tracker._process._process
    tracker._process._lines.put('{"exit_code": 0}')
    tracker._process._lines.put(None)
    process.wait(120)  # a busy machine imports for longer than a run waits at its end
    tracker.run_finished({"status": "done"})
    return out.getvalue(), ran
