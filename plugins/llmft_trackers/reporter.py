"""What every tracker has in common whose library runs in a process of its own."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from llmft.api import EnvironmentFault, Progress, RunInfo, StageInfo, Tracker
from llmft.toolkit import escaped, terminal_width, wrapped
from llmft_trackers.process import TrackerProcess
from llmft_trackers.steps import StageSteps

log = logging.getLogger("llmft")
_MOST_NOTES, _LONGEST_NOTE = 200, 500


class Reporter(Tracker[Any]):
    """Tells a process what happens, and never waits for it.

    Nothing that the library does there can touch the training, and what hangs can be ended.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._notes: list[str] = []
        self._out = sys.stdout  # the engine sends what is printed later to the log
        self._process: TrackerProcess | None = None
        self._steps = StageSteps()

    def begin(self, run: RunInfo) -> tuple[TrackerProcess, Mapping[str, Any]] | None:
        """Return a new process and the first message to it; None where nobody is told."""
        raise NotImplementedError

    def run_started(self, run: RunInfo) -> None:
        """Start the process that tells the library, and go on at once."""
        begun = self.begin(run)
        if begun is not None:
            self._process = begun[0]
            self._tell(begun[1])

    def stage_started(self, stage: StageInfo) -> None:
        """Tell what the stage trains, on what."""
        self._steps.started(stage)
        counts = {"trainable_parameters", "total_parameters", "rows", "tokens", "trained_tokens"}
        told = {f"{stage.name}/{name}": getattr(stage, name) for name in sorted(counts)}
        self._tell({"config": told})
        self._say_remarks()

    def progress(self, progress: Progress) -> None:
        """Tell the metrics of a logged step, on the stage's own axis of steps."""
        self._steps.progressed(progress)
        if not progress.logged:
            return
        phase = "" if progress.phase == "train" else f"{progress.phase}/"
        self._log(progress.stage, phase, progress.metrics)

    def scored(self, stage: str, when: str, metrics: Mapping[str, float]) -> None:
        """Tell the scores, as `<stage>/before/<metric>` and `<stage>/after/<metric>`."""
        self._steps.scored(stage, when)
        self._log(stage, f"{when}/", metrics)
        self._say_remarks()

    def note(self, text: str) -> None:
        """Tell all remarks so far."""
        if len(self._notes) < _MOST_NOTES:
            self._notes.append(text[:_LONGEST_NOTE])
            self._tell({"notes": "\n".join(self._notes)})

    def stage_finished(self, stage: str, result: Mapping[str, Any]) -> None:
        """Tell the numbers that describe the stage."""
        numbers = dict(result.get("metrics", {}))
        self._tell({"summary": numbers, "stage": stage, "step": self._steps.of(stage)})
        self._say_remarks()

    def run_finished(self, summary: Mapping[str, Any]) -> None:
        """Wait until the library has everything, at most ten seconds."""
        done = summary.get("status", "done") == "done" and "error" not in summary
        if self._process is not None:
            self._tell({"exit_code": 0 if done else 1})
            self._process.close()
            self._say_remarks()
        self._process = None

    def _log(self, stage: str, prefix: str, metrics: Mapping[str, float]) -> None:
        if metrics:
            told = {f"{stage}/{prefix}{name}": value for name, value in metrics.items()}
            step = self._steps.of(stage)
            self._tell({"log": told, "stage": stage, "step": step, "time": time.time()})

    def _tell(self, message: Mapping[str, Any]) -> None:
        if self._process is not None:
            self._process.tell(message)

    def _say_remarks(self) -> None:
        for remark in self._process.remarks() if self._process else ():
            log.info(remark)
            lines = wrapped(escaped(f"note: {remark}"), terminal_width(self._out))
            self._out.write("\n".join(lines) + "\n")
            self._out.flush()


def require(package: str, install: str) -> None:
    """Raise EnvironmentFault (E206) where a package is missing: looked for, not imported."""
    if find_spec(package) is None:
        what = f"this tracker needs the package {package}, which is not installed"
        raise EnvironmentFault("E206", what, fix=f"pip install {install}")
