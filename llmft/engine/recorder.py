"""What a run leaves for its report: how long each phase took, how much memory, and every remark."""

from __future__ import annotations

import resource
import sys
import time
from bisect import bisect_left
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from llmft.api import EnvironmentFault, Progress, RunInfo, StageInfo, Tracker, TrackerConfig
from llmft.reporting.report import write_report
from llmft.reporting.run_facts import TIMELINE
from llmft.system import fsio

_SIZES = ("rows", "tokens", "trained_tokens", "trainable_parameters", "total_parameters", "steps")
_MOST_SEEN, _PARTS = 400, 10


class Recorder(Tracker[Any]):
    """Writes `timeline.json` and `report.html` into the run's folder when the run ends.

    As any tracker it ends no run: where it fails, it is left out.
    """

    method = "report"
    contacts = ""

    def __init__(self) -> None:
        super().__init__(TrackerConfig(method=self.method))
        self._folder: Path | None = None
        self._began = time.monotonic()
        self._stages: dict[str, dict[str, Any]] = {}
        self._notes: list[str] = []
        self._phase: tuple[str, str, float] | None = None
        self._pace = Pace()

    def run_started(self, run: RunInfo) -> None:
        """Remember where the run writes."""
        self._folder, self._began = run.folder, time.monotonic()

    def stage_started(self, stage: StageInfo) -> None:
        """Keep the stage's sizes."""
        self._of(stage.name).update({name: getattr(stage, name) for name in _SIZES})

    def progress(self, progress: Progress) -> None:
        """Let a phase end where another begins."""
        if self._phase is None or self._phase[:2] != (progress.stage, progress.phase):
            self._end_phase()
            self._phase = (progress.stage, progress.phase, time.monotonic())
            self._pace = Pace()
        self._pace.add(progress.done, progress.total, time.monotonic())

    def note(self, text: str) -> None:
        """Keep a remark."""
        self._notes.append(text)

    def stage_finished(self, stage: str, result: Mapping[str, Any]) -> None:
        """Let the last phase end."""
        self._end_phase()

    def run_finished(self, summary: Mapping[str, Any]) -> None:
        """Write what was recorded, behind what an earlier part of the run has left.

        A run that failed tells its own fault; that the disk takes no report either adds nothing.
        """
        try:
            self._write(summary)
        except EnvironmentFault:
            if summary.get("status") != "failed":
                raise

    def _write(self, summary: Mapping[str, Any]) -> None:
        self._end_phase()
        if self._folder is None or not (self._folder / "run.json").is_file():
            return
        path = self._folder / TIMELINE
        old = fsio.read_json(path, "remove it") if path.is_file() else {}
        stages = dict(old.get("stages") or {})
        for name, told in self._stages.items():
            before = stages.get(name, {})
            phases = [*before.get("phases", []), *told["phases"]]
            stages[name] = {**before, **told, "phases": phases}
        fsio.write_json(
            path,
            {
                "status": str(summary.get("status", "finished")),
                "seconds": round(old.get("seconds", 0.0) + time.monotonic() - self._began, 3),
                "notes": list(dict.fromkeys([*old.get("notes", []), *self._notes])),
                "stages": stages,
            },
        )
        write_report(self._folder)

    def _of(self, stage: str) -> dict[str, Any]:
        return self._stages.setdefault(stage, {"phases": []})

    def _end_phase(self) -> None:
        if self._phase is None:
            return
        stage, phase, began = self._phase
        self._phase = None
        seconds = round(time.monotonic() - began, 3)
        told = {"phase": phase, "seconds": seconds, "peak_bytes": _peak_bytes()}
        self._of(stage)["phases"].append(told | self._pace.told())


class Pace:
    """How fast a phase went: how many units it did of how many, and the seconds of one."""

    def __init__(self) -> None:
        self._marks: list[tuple[int, float]] = []
        self._every = 1  # of the signs of progress, each so many-th is kept
        self._signs = 0
        self._done = 0
        self._last = (0, 0.0)
        self._total = 0

    def add(self, done: int, total: int, at: float) -> None:
        """Take in that so many units are done by now. at: in seconds."""
        if not self._marks:
            self._marks, self._done, self._last = [(0, at)], done, (0, at)
        # Where it begins again, as each part of a mixture does, it goes on counting.
        self._last = (self._last[0] + max(done - self._done, 0), at)
        self._done, self._total = done, max(self._total, total)
        self._signs += 1
        if self._signs % self._every == 0 and self._last[0] > self._marks[-1][0]:
            self._marks.append(self._last)
        if len(self._marks) > _MOST_SEEN:
            del self._marks[1::2]
            self._every *= 2

    def told(self) -> dict[str, Any]:
        """Return `done`, `total`, and `pace`: seconds of a unit in up to ten parts of the phase."""
        if not self._last[0]:
            return {}
        marks = list(self._marks)
        if self._last[0] > marks[-1][0]:
            marks.append(self._last)
        if len(marks) > _PARTS:
            units = [done for done, _ in marks]
            ends = [units[0] + n * (units[-1] - units[0]) / _PARTS for n in range(1, _PARTS + 1)]
            places = dict.fromkeys([0, *(bisect_left(units, end) for end in ends)])
            marks = [marks[place] for place in places]
        pace = [
            round((later[1] - earlier[1]) / (later[0] - earlier[0]), 6)
            for earlier, later in pairwise(marks)
        ]
        return {"done": self._last[0], "total": self._total, "pace": pace}


def _peak_bytes() -> int:
    """Return the most memory that was held so far: of the GPU where one is used, else of this."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    told = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return told if sys.platform == "darwin" else told * 1024
