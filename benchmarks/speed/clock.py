"""What a contestant's process notes of itself, and where it writes it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

BEGAN = "LLMFT_SPEED_BEGAN"
"""The environment variable with the time, in seconds of the epoch, at which a process began."""
SPENT = "LLMFT_SPEED_SPENT"
"""The environment variable with the CPU seconds of a process that launched this one, if any."""


class Clock:
    """Marks of one process: when its first step could begin, and what its steps took."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.ready = self.ready_cpu = 0.0
        self._cpu = self._wall = 0.0

    def start(self) -> None:
        """Note that model and rows are ready, and that training begins now."""
        self.ready = time.time() - float(os.environ.get(BEGAN, time.time()))
        self._cpu, self._wall = time.process_time(), time.monotonic()
        self.ready_cpu = self._cpu + float(os.environ.get(SPENT, 0))

    def stop(self, path: Path) -> None:
        """Write the seconds since the start, the losses, and the most memory ever resident."""
        facts = {
            "cpu": time.process_time() - self._cpu,
            "wall": time.monotonic() - self._wall,
            "ready": self.ready,
            "ready_cpu": self.ready_cpu,
            "losses": self.losses,
            "peak": peak_bytes(),
        }
        path.write_text(json.dumps(facts), "utf-8")


def peak_bytes() -> int:
    """Return the high-water mark of this process's resident memory, in bytes (Linux)."""
    status = Path("/proc/self/status").read_text("ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
