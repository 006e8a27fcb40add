"""Measures `rlhf_quickstart`: held-out exact match from round to round, and the time in all.

    python benchmarks/rlhf.py --seeds 17 18 19

Each run is a new process, as a user starts it. Prints a line for each seed; exits with 1 where the
policy of the last round is not at least 60 % right by the rule that ranked, or a run takes longer
than six minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

COLUMNS = ("sft", "ppo", "ppo-2")


def main() -> int:
    """Run the recipe once for each seed, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    seeds = parser.parse_args().seeds
    print(f"{os.cpu_count()} cores; exact match on held-out questions")
    head = "  ".join(f"{name:>6}" for name in COLUMNS)
    print(f"{'seed':>4}  {head}  {'pairs':>11}  {'reward accuracy':>15}  {'seconds':>7}")
    good = True
    for seed in seeds:
        seconds, stages = measure(seed)
        matches = [stages[name]["after"]["exact_match"] for name in COLUMNS]
        good &= matches[-1] >= 0.6 and seconds <= 360
        pairs = " ".join(f"{stages[n]['metrics']['pairs']:.0f}" for n in ("rank", "rank-2"))
        right = " ".join(f"{stages[n]['after']['accuracy']:.3f}" for n in ("reward", "reward-2"))
        shown = "  ".join(f"{match:>6.1%}" for match in matches)
        print(f"{seed:>4}  {shown}  {pairs:>11}  {right:>15}  {seconds:>7.1f}", flush=True)
    return 0 if good else 1


def measure(seed: int) -> tuple[float, dict[str, Any]]:
    """Return the wall time of one run, and its stages' results."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        done = subprocess.run(
            [
                sys.executable, "-m", "llmft", "run", "rlhf_quickstart", "--json",
                "--set", f"seed={seed}", "--output-dir", folder,
            ],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        seconds = time.monotonic() - started
    return seconds, json.loads(done.stdout)["stages"]


if __name__ == "__main__":
    sys.exit(main())
