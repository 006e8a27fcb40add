"""Parts of a check: each within its seconds, its results kept as soon as it has them."""

from __future__ import annotations

import gc
import json
import math
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Check:
    """Runs parts in order, writes their results to a file, and leaves out what is done there.

    seconds: in all; a part begins only if the seconds that it was written to need are left.
    """

    def __init__(self, out: Path, device: str, seconds: float, only: set[str]) -> None:
        self.file, self.device = out / "results.jsonl", torch.device(device)
        self.out, self.only, self.part = out, only, ""
        self.ends, self.failed = time.monotonic() + seconds, False
        known = self.file.read_text().splitlines() if self.file.exists() else []
        found = [json.loads(line) for line in known]
        self.done = {result["part"] for result in found if "seconds" in result}
        measured = [r["matmul_tflops"] for r in found if "matmul_tflops" in r]
        self.ceiling = 1e12 * measured[-1] if measured else math.nan
        """Operations a second of a large product, once it has been measured."""

    def say(self, **facts: Any) -> None:
        """Print a result, and add it to the file."""
        line = json.dumps({"part": self.part, **facts})
        print(line, flush=True)
        with self.file.open("a") as file:
            file.write(line + "\n")

    def run(self, name: str, needs: float, part: Callable[[Check], None]) -> None:
        """Run a part, unless it is done, not asked for, or would take too long."""
        self.part = name
        if (self.only and name not in self.only) or name in self.done:
            return
        left = self.ends - time.monotonic()
        if left < needs:
            self.say(left_out=f"needs {needs:.0f} s, and {left:.0f} are left")
            return
        begun = time.monotonic()
        try:
            part(self)
        except Exception as error:  # the parts after it are wanted, too
            self.failed = True
            where = traceback.format_exc().splitlines()[-5:]
            self.say(fails=f"{type(error).__name__}: {str(error)[:300]}", where=where)
            return
        finally:
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        self.say(seconds=round(time.monotonic() - begun, 1))

    def wait(self) -> None:
        """Wait until the device has done all that it was asked to."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, work: Callable[[], Any], times: int = 10) -> float:
        """Return the median milliseconds of one call."""
        for _ in range(3):
            work()
        found = []
        for _ in range(times):
            self.wait()
            begun = time.perf_counter()
            work()
            self.wait()
            found.append(time.perf_counter() - begun)
        return round(1e3 * sorted(found)[times // 2], 3)
