"""Measures the quickstart: exact match before and after, and the time from start to end.

    python benchmarks/quickstart.py --seeds 17 18 19

Each run is a new process, as a user starts it. Prints one line a seed; exits with 1 where a run
misses what the documentation promises (at most 5 % before, at least 50 % after, within 90 s).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time


def main() -> int:
    """Run the recipe once for each seed, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    seeds = parser.parse_args().seeds
    print(f"{os.cpu_count()} cores")
    print(f"{'seed':>4}  {'EM before':>9}  {'EM after':>8}  {'F1 after':>8}  {'seconds':>7}")
    times, good = [], True
    for seed in seeds:
        seconds, before, after = measure(seed)
        times.append(seconds)
        good &= before["exact_match"] <= 0.05 and after["exact_match"] >= 0.5 and seconds <= 90
        print(
            f"{seed:>4}  {before['exact_match']:>9.1%}  {after['exact_match']:>8.1%}"
            f"  {after['f1']:>8.1%}  {seconds:>7.1f}"
        )
    print(f"median {statistics.median(times):.1f} s")
    return 0 if good else 1


def measure(seed: int) -> tuple[float, dict[str, float], dict[str, float]]:
    """Return the wall time of one run, and its scores before and after."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        done = subprocess.run(
            [
                sys.executable, "-m", "llmft", "run", "quickstart", "--json",
                "--set", f"seed={seed}", "--output-dir", folder,
            ],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        seconds = time.monotonic() - started
    stage = json.loads(done.stdout)["stages"]["sft"]
    return seconds, stage["before"], stage["after"]


if __name__ == "__main__":
    sys.exit(main())
