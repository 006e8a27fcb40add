"""The recipe's trackers as one: each is told everything, and one that fails harms nobody."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from llmft.api import Progress, RunInfo, StageInfo, Tracker
from llmft.system.rng import isolated_rng

log = logging.getLogger("llmft")


class Trackers:
    """Hands every event to every tracker; drops a tracker that raises, after saying so once."""

    def __init__(self, trackers: Sequence[Tracker[Any]]) -> None:
        self.trackers = list(trackers)

    def _tell(self, verb: str, *args: Any) -> None:
        for tracker in list(self.trackers):
            try:
                with isolated_rng():
                    getattr(tracker, verb)(*args)
            except (Exception, SystemExit) as error:  # a lost metric never ends a run
                self.trackers.remove(tracker)
                log.exception("tracker '%s' failed", tracker.method)
                self.note(f"tracker '{tracker.method}' failed and is left out: {error!r}")

    def contacts(self) -> list[str]:
        """Return what a person should know of the network before a run starts."""
        hosts = [(f"tracker '{tracker.method}'", tracker.contacts) for tracker in self.trackers]
        return [
            f"{name}: it does not declare whether it uses the network"
            if host is None
            else f"{name} sends data to {host}"
            for name, host in hosts
            if host != ""
        ]

    def run_started(self, run: RunInfo) -> None:
        """Tell that a run begins."""
        self._tell("run_started", run)

    def stage_started(self, stage: StageInfo) -> None:
        """Tell that a stage is about to train."""
        self._tell("stage_started", stage)

    def progress(self, progress: Progress) -> None:
        """Tell how far a phase has come."""
        self._tell("progress", progress)

    def scored(self, stage: str, when: str, metrics: Mapping[str, float]) -> None:
        """Tell the scores of a stage before or after training."""
        self._tell("scored", stage, when, metrics)

    def note(self, text: str) -> None:
        """Tell a remark, and keep it in the log."""
        log.info(text)
        self._tell("note", text)

    def stage_finished(self, stage: str, result: Mapping[str, Any]) -> None:
        """Tell what a stage made."""
        self._tell("stage_finished", stage, result)

    def run_finished(self, summary: Mapping[str, Any]) -> None:
        """Tell how the run ended."""
        self._tell("run_finished", summary)
