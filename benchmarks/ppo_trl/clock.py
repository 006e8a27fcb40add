"""What a contestant's process notes of itself. Imports the standard library only."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path


class Clock:
    """Marks of one run of PPO: what each step took, what it reached, and the process's memory."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.loaded = 0
        self._cpu = self._wall = 0.0

    def start(self) -> None:
        """Note that models and prompts are ready, and that the first answers are drawn now."""
        self.loaded = memory("VmRSS")
        self._cpu, self._wall = time.process_time(), time.monotonic()

    def step(self, metrics: Mapping[str, float]) -> None:
        """Note the end of a step, and what it reached."""
        self.steps.append({**self._passed(), **metrics})

    def stop(self, path: Path) -> None:
        """Write everything, in seconds and bytes; to be called when the last step is done."""
        facts = {
            **self._passed(), "steps": self.steps,
            "loaded": self.loaded, "peak": memory("VmHWM"),
        }  # fmt: skip
        path.write_text(json.dumps(facts), "utf-8")

    def _passed(self) -> dict[str, float]:
        return {
            "cpu": time.process_time() - self._cpu,
            "wall": time.monotonic() - self._wall,
        }


def memory(name: str) -> int:
    """Return a figure of this process's resident memory in bytes (Linux).

    name: 'VmRSS' for what is resident now, 'VmHWM' for the most there ever was.
    """
    status = Path("/proc/self/status").read_text("ascii")
    line = next(line for line in status.splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
