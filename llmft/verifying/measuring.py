"""What a stretch of work took in this process: CPU seconds, seconds, and memory at most."""

from __future__ import annotations

import resource
import sys
import time


class Meter:
    """Measures from `start` to `read`."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0

    def start(self) -> None:
        """Begin."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def read(self) -> dict[str, float]:
        """Return CPU seconds, seconds, and the peak in MiB: the GPU's, else the process's."""
        import torch

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        mib = peak / (2**20 if sys.platform == "darwin" else 2**10)
        if torch.cuda.is_available():
            mib = torch.cuda.max_memory_allocated() / 2**20
        return {
            "cpu_seconds": round(time.process_time() - self.cpu, 3),
            "seconds": round(time.perf_counter() - self.wall, 3),
            "peak_mib": round(mib, 1),
        }
