"""What a run leaves for its report: how long each phase took, how much memory, and every remark."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmft.api import EnvironmentFault, Progress, RunInfo, StageInfo, Tracker, TrackerConfig
from llmft.reporting.report import write_report
from llmft.reporting.run_facts import TIMELINE
from llmft.system import fsio

_SIZES = ("rows", "tokens", "trained_tokens", "trainable_parameters", "total_parameters", "steps")


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
        self._of(stage)["phases"].append(
            {"phase": phase, "seconds": seconds, "peak_bytes": _peak_bytes()}
        )


def _peak_bytes() -> int:
    """Return the most memory that was held so far: of the GPU where one is used, else of this."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    told = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return told if sys.platform == "darwin" else told * 1024
