"""Measure how soon the light commands answer, with no plugins beside llmft's own and with 50.

    python benchmarks/startup.py [--runs 5] [--limit 0.4]

Prints the median wall time of each command in seconds; exits 1 where one is above the limit.
The plugins are made in a temporary folder: distributions with metadata and a module each, as pip
would leave them. Run it where llmft is installed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PLUGINS = 50
MODULE = '''
from typing import Literal
from llmft.api import Field, Tracker, TrackerConfig, hookimpl


class Fake(Tracker):
    """Does nothing, number {number}."""

    method = "fake{number}"

    class Config(TrackerConfig):
        url: str | None = Field(None, max_length=200, description="where to")
        every: int = Field(1, ge=1, le=1000, description="how often")


@hookimpl
def llmft_trackers():
    return [Fake]
'''
RECIPE = """# A recipe with the methods that ship with llmft.
recipe: 1
name: startup
model: {path: embedded:model}
stages:
  - name: sft
    adapter: {method: lora}
    alignment: {method: sft}
    data: {method: triviaqa}
"""


def main() -> int:
    """Print the table, and return 1 where a command is too slow."""
    parser = argparse.ArgumentParser(description="measure how soon the light commands answer")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--limit", type=float, default=0.4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(RECIPE)
        plugins = Path(folder) / "plugins"
        for number in range(PLUGINS):
            make_plugin(plugins, number)
        commands = [
            ["--help"], ["validate", str(recipe)], ["list-plugins"], ["show", "lora"], ["schema"],
            ["explain", "E012"],
        ]  # fmt: skip
        print(f"{'command':14}{'0 plugins':>12}{f'{PLUGINS} plugins':>12}")
        slowest = 0.0
        for command in commands:
            medians = [
                statistics.median(wall(command, path) for _ in range(options.runs))
                for path in (None, plugins)
            ]
            slowest = max(slowest, *medians)
            print(f"{command[0]:14}{medians[0]:>10.3f} s{medians[1]:>10.3f} s")
    if slowest > options.limit:
        print(f"too slow: {slowest:.3f} s, where {options.limit} s is the limit")
        return 1
    return 0


def make_plugin(folder: Path, number: int) -> None:
    """Lay down an installed distribution that offers one tracker."""
    info = folder / f"llmft_fake{number}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: llmft-fake{number}\nVersion: 1.0\n"
    )
    (info / "entry_points.txt").write_text(f"[llmft.trackers]\nfake{number} = llmft_fake{number}\n")
    (folder / f"llmft_fake{number}.py").write_text(MODULE.format(number=number))


def wall(command: list[str], plugins: Path | None) -> float:
    """Return the seconds that one run of the command takes; stop the program where it fails."""
    env = dict(os.environ)
    if plugins is not None:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [env.get("PYTHONPATH"), str(plugins)]))
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "llmft", *command], env=env, capture_output=True, text=True
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"llmft {' '.join(command)} failed:\n{done.stderr}")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
