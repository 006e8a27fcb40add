"""Does a run take as long as `llmft plan` says? Plans, runs and compares, stage by stage.

    python benchmarks/plan_time.py                       # quickstart, dpo_quick, grpo_quick
    python benchmarks/plan_time.py quickstart --seconds 120 --set stages.sft.train.max_steps=40

Of each recipe, in this order: the time by its first steps (`plan --measure`), a run, the time by
that run (`plan`), and a run again. A stage's real time is that of all phases in its run's
`timeline.json`. It exits with 1 where one is outside of the interval that was told before.

The machine should do nothing else: an interval tells how unsteady it was, not what comes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RECIPES = ("quickstart", "dpo_quick", "grpo_quick")


def llmft(*words: str) -> str:
    """Return what llmft prints; end where it fails."""
    command = [sys.executable, "-P", "-m", "llmft", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def planned(recipe: str, more: list[str], *words: str) -> dict[str, Any]:
    """Return the time that a plan tells."""
    found: dict[str, Any] = json.loads(llmft("plan", recipe, *more, *words, "--json"))["time"]
    return found


def run(recipe: str, more: list[str], place: Path) -> dict[str, float]:
    """Run a recipe; return each stage's seconds."""
    before = set(place.glob("*/*/timeline.json"))
    llmft("run", recipe, *more)
    (path,) = set(place.glob("*/*/timeline.json")) - before
    stages = json.loads(path.read_text())["stages"]
    return {name: sum(p["seconds"] for p in told["phases"]) for name, told in stages.items()}


def compared(recipe: str, by: str, time: dict[str, Any], real: dict[str, float]) -> bool:
    """Print a line for each stage; return whether all are within their intervals."""
    fine = True
    for stage in time["stages"]:
        whole, seconds = stage["whole"], real[stage["stage"]]
        within = whole["low"] <= seconds <= whole["high"]
        fine &= within
        print(
            f"{recipe:<12} {stage['stage']:<6} {by:<9} {whole['low']:8.1f} {whole['likely']:8.1f}"
            f" {whole['high']:8.1f} {seconds:8.1f}  {'within' if within else 'OUTSIDE'}",
            flush=True,
        )
    return fine


def main() -> int:
    """Compare, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--seconds", default="300", help="of each measurement at most")
    parser.add_argument("--set", action="append", default=[], help="as `llmft run` takes it")
    asked = parser.parse_args()
    fine = True
    load = os.getloadavg()[0]
    print(f"load {load:.1f} on {os.cpu_count()} cores at the start; seconds")
    print("recipe       stage  by             low   likely     high     real")
    for recipe in asked.recipes:
        with tempfile.TemporaryDirectory() as scratch:
            place = Path(scratch)
            more = [word for one in asked.set for word in ("--set", one)]
            more += ["--set", f"output_dir={json.dumps(scratch)}"]
            time = planned(recipe, more, "--measure", asked.seconds)
            fine &= compared(recipe, "measured", time, run(recipe, more, place))
            time = planned(recipe, more)
            fine &= compared(recipe, "a run", time, run(recipe, more, place))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
