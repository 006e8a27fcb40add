"""Measures learning from preferences: what it teaches.

    python benchmarks/preferences.py                # three seeds of the quick recipes
    python benchmarks/preferences.py --real         # a real model on real pairs

The last needs LLMFT_REAL_ASSETS, a folder with models/stories15M and data/pref_*.jsonl.gz. How fast
it is, beside TRL, benchmarks/speed/run.py measures.
Exits with 1 where a promise of the documentation is missed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RECIPES = {"dpo_quick": "dpo", "orpo_quick": "orpo", "reward_quick": "reward"}
REAL_DATA = ("pref_polite", "pref_truthfulqa", "pref_triviaqa")
REAL_PAIRS = 800
REAL_METHODS = (("dpo", "", 5e-4), ("orpo", ", beta: 1.0", 1e-3), ("reward", "", 5e-4))


def main() -> int:
    """Measure what was asked for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--real", action="store_true", help="stories15M on real pairs")
    asked = parser.parse_args()
    return measure_real() if asked.real else measure_quick(asked.seeds)


# --- what the quick recipes teach


def measure_quick(seeds: list[int]) -> int:
    """Run each quick recipe once a seed: accuracy on held-out pairs, exact match, time."""
    head = ("recipe", "seed", "accuracy", "after", "margin", "after", "EM", "after", "seconds")
    print("  ".join(f"{name:>12}" for name in head))
    good = True
    for recipe, stage in RECIPES.items():
        for seed in seeds:
            started = time.monotonic()
            result = run_recipe(recipe, [f"seed={seed}"])[stage]
            before, after = result["before"], result["after"]
            prefix = "" if stage == "reward" else "preference_"
            row = [recipe, seed]
            for name in (f"{prefix}accuracy", f"{prefix}margin", "exact_match"):
                row += [f"{s[name]:.3f}" if name in s else "" for s in (before, after)]
            row.append(f"{time.monotonic() - started:.0f}")
            print("  ".join(f"{cell!s:>12}" for cell in row), flush=True)
            good &= after[f"{prefix}accuracy"] >= (0.9 if stage == "reward" else 0.85)
            if "exact_match" in after:
                good &= after["exact_match"] >= before["exact_match"] - 0.03
    return 0 if good else 1


def run_recipe(recipe: str, overrides: list[str]) -> dict[str, Any]:
    """Run a recipe in a new process, as a user does, and return its stages' results."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "llmft", "run", recipe, "--json", "--output-dir", folder]
        command += [word for override in overrides for word in ("--set", override)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"'{recipe}' failed:\n{done.stdout}{done.stderr}")
    stages: dict[str, Any] = json.loads(done.stdout)["stages"]
    return stages


# --- a real model on real pairs

REAL_RECIPE = """
recipe: 1
name: real
model: {{path: {model}}}
stages:
  - name: {method}
    adapter: {{method: lora, r: 16, lora_alpha: 32}}
    alignment: {{method: {method}{options}}}
    data:
      method: preference
      path: {data}
      on_bad_row: skip
      columns: {{prompt: "{{prompt}}\\n", chosen: "{{chosen}}", rejected: "{{rejected}}"}}
    train:
      num_train_epochs: 2
      learning_rate: {rate}
      lr_scheduler_type: cosine
      per_device_train_batch_size: 16
      max_dropped: 0.2
    evaluate: {{metrics: [], holdout: 0.25}}
"""


def measure_real() -> int:
    """Train stories15M on each file of real pairs; a quarter is held out. Nothing is promised."""
    print(f"{'pairs':>16}  {'method':>6}  {'held out':>8}  {'before':>22}  {'after':>22}")
    for data in REAL_DATA:
        for method, options, rate in REAL_METHODS:
            with tempfile.TemporaryDirectory() as folder:
                rows = real_rows(data)[:REAL_PAIRS]
                path = Path(folder) / "pairs.jsonl"
                path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
                recipe = Path(folder) / "real.yaml"
                model = assets() / "models" / "stories15M"
                text = REAL_RECIPE.format(
                    model=model, method=method, options=options, data=path, rate=rate
                )
                recipe.write_text(text, "utf-8")
                result = run_recipe(str(recipe), [])[method]
            name = "accuracy" if method == "reward" else "preference_accuracy"
            shown = [
                f"{s[name]:.3f} [{s[name + '_low']:.3f}, {s[name + '_high']:.3f}]"
                for s in (result["before"], result["after"])
            ]
            held = round(len(rows) * 0.25)
            print(f"{data:>16}  {method:>6}  {held:>8}  {shown[0]:>22}  {shown[1]:>22}", flush=True)
    return 0


def assets() -> Path:
    """Return the folder of real models and data."""
    if not (folder := os.environ.get("LLMFT_REAL_ASSETS")):
        raise SystemExit("set LLMFT_REAL_ASSETS to the folder of real models and data")
    return Path(folder)


def real_rows(name: str) -> list[dict[str, str]]:
    """Return a file's pairs that a context of 256 tokens holds, roughly, and that differ."""
    with gzip.open(assets() / "data" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [
        {key: row[key] for key in ("prompt", "chosen", "rejected")}
        for row in rows
        if len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"])) < 600
        and row["chosen"].strip() != row["rejected"].strip()
    ]


if __name__ == "__main__":
    sys.exit(main())
