"""Tracker `jsonl`: every logged metric as one JSON line in the run folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TextIO

from llmft.api import Field, Progress, RunInfo, StageInfo, Tracker, TrackerConfig, hookimpl
from llmft.toolkit import open_to_append
from llmft_trackers.steps import StageSteps


class Jsonl(Tracker[Any]):
    """Append every logged metric to `stages/<stage>/metrics.jsonl` in the run folder.

    A line is {"stage", "step", "phase", ...metrics}; a number that is not finite is null.
    """

    method = "jsonl"
    contacts = ""

    class Config(TrackerConfig):
        """Settings of the jsonl tracker."""

        method: Literal["jsonl"] = Field("jsonl", description="write metrics to a file")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._folder: Path | None = None
        self._files: dict[str, TextIO] = {}
        self._steps = StageSteps()

    def run_started(self, run: RunInfo) -> None:
        """Remember where the run writes."""
        self._folder = run.folder

    def stage_started(self, stage: StageInfo) -> None:
        """Remember how many steps there are: a run that goes on after the last one logs none."""
        self._steps.started(stage)

    def progress(self, progress: Progress) -> None:
        """Write the metrics of a logged step."""
        self._steps.progressed(progress)
        if progress.logged:
            self._write(progress.stage, progress.done, progress.phase, progress.metrics)

    def scored(self, stage: str, when: str, metrics: Mapping[str, float]) -> None:
        """Write the scores, with the last step before them."""
        self._steps.scored(stage, when)
        self._write(stage, self._steps.of(stage), f"score_{when}", metrics)

    def stage_finished(self, stage: str, result: Mapping[str, Any]) -> None:
        """Close the stage's file."""
        if stage in self._files:
            self._files.pop(stage).close()

    def run_finished(self, summary: Mapping[str, Any]) -> None:
        """Close what a run that failed left open."""
        for stage in list(self._files):
            self._files.pop(stage).close()

    def _write(self, stage: str, step: int, phase: str, metrics: Mapping[str, float]) -> None:
        entry = {"stage": stage, "step": step, "phase": phase}
        entry |= {name: _finite(value) for name, value in metrics.items() if name not in entry}
        self._file(stage).write(json.dumps(entry) + "\n")

    def _file(self, stage: str) -> TextIO:
        if stage not in self._files:
            if self._folder is None:
                raise RuntimeError("run_started was never called")
            path = self._folder / "stages" / stage / "metrics.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[stage] = open_to_append(path)
        return self._files[stage]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@hookimpl
def llmft_trackers() -> list[type[Tracker[Any]]]:
    """Return the jsonl tracker."""
    return [Jsonl]
