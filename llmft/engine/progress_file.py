"""How far a run is, in a small file of its folder: for `llmft watch`, from another terminal."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmft.api import Progress, RunInfo, Tracker, TrackerConfig
from llmft.reporting.watching import PROGRESS
from llmft.system.plain_files import open_own

_SECONDS = 1.0  # between two writings within a phase


class ProgressFile(Tracker[Any]):
    """Keeps `progress.json` in the run's folder up to date: phase, units done, and since when.

    It is rewritten in place, without a sync: nothing that a run needs depends on it, and where the
    disk takes it no more, it is left as it is.
    """

    method = "progress"
    contacts = ""

    def __init__(self) -> None:
        super().__init__(TrackerConfig(method=self.method))
        self._path: Path | None = None
        self._phase: tuple[str, str] | None = None
        self._told: dict[str, Any] = {}
        self._written, self._size = 0.0, 0

    def run_started(self, run: RunInfo) -> None:
        """Remember where the run writes."""
        self._path = run.folder / PROGRESS

    def progress(self, progress: Progress) -> None:
        """Write how far a phase is, once a second."""
        now = time.time()
        begins = self._phase != (progress.stage, progress.phase)
        if begins:
            self._phase = (progress.stage, progress.phase)
            self._told = {"began": now, "first": progress.done}
        if progress.metrics:
            finite = {k: v for k, v in progress.metrics.items() if math.isfinite(v)}
            self._told["metrics"] = finite
        self._told |= {
            "stage": progress.stage, "phase": progress.phase,
            "done": progress.done, "total": progress.total, "at": now,
        }  # fmt: skip
        if begins or progress.done >= progress.total or now - self._written >= _SECONDS:
            self._write(now)

    def run_finished(self, summary: Mapping[str, Any]) -> None:
        """Write the last of it."""
        if self._told:
            self._write(time.time())

    def _write(self, now: float) -> None:
        if self._path is None:
            return
        text = json.dumps(self._told).encode()
        data = text.ljust(self._size)  # behind a shorter text there is nothing of a longer one
        try:
            handle = open_own(self._path, os.O_WRONLY | os.O_CREAT)
            try:
                os.pwrite(handle, data, 0)
                if not self._size:  # an earlier process may have left a longer one
                    os.ftruncate(handle, len(data))
            finally:
                os.close(handle)
        except OSError:
            self._path = None
        self._written, self._size = now, max(self._size, len(text))
