"""Hurts training runs in every way that can be thought of, and writes what came of it.

`python benchmarks/faults/run.py` runs all of it, over every adapter with every alignment and two
pipelines, and writes docs/reliability.md and docs/reliability.svg; `--sample 100 --seed 3` takes
that many faults at random and writes no page but `--page`'s. It works on a copy of the tree, so
that edits do no harm, and leaves with 1 where anything is not as it is promised.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
COPIED = (
    "llmft",
    "plugins",
    "recipes",
    "tests/end_to_end/checkpoints",
    "tests/recipes",
    "benchmarks/faults",
)


def main() -> int:
    """Copy the tree, and go on in the copy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, help="so many faults at random; default: all")
    parser.add_argument("--only", default="", help="only methods whose name has this in it")
    parser.add_argument("--seed", type=int, default=0, help="which of them, and when kills come")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--recipes", type=int, help="changed recipes to load; default: 100,000")
    parser.add_argument("--no-raw", action="store_true", help="leave the raw loop out")
    parser.add_argument("--page", type=Path, help="the page to write; with a sample, none else")
    parser.add_argument("--copied", nargs="*", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.copied is not None:
        return _measure(asked)
    with tempfile.TemporaryDirectory(prefix="llmft-faults-", dir=_in_memory()) as folder:
        tree = Path(folder) / "tree"
        for name in COPIED:
            shutil.copytree(
                HERE.parents[1] / name, tree / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        paths = [
            tree,
            tree / "plugins",
            tree / "benchmarks/faults",
            tree / "tests/end_to_end/checkpoints",
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "TMPDIR": folder,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        copy = str(tree / "benchmarks/faults/run.py")
        part = asked.sample or asked.only
        page = asked.page or (None if part else HERE.parents[1] / "docs/reliability.md")
        to = [str(page.resolve(strict=True))] if page else []
        command = [sys.executable, copy, *sys.argv[1:], "--copied", *to]
        return subprocess.run(command, env=environment).returncode


def _measure(asked: argparse.Namespace) -> int:
    from canaries import Canaries
    from cells import Ground
    from drawing import picture
    from fuzz import fuzz
    from report import Measured, into_page, table
    from sweep import sweep
    from tally import Tally

    started = time.monotonic()
    canaries = Canaries()
    ground = Ground.made(Path(tempfile.mkdtemp()))
    swept = sweep(ground, canaries, asked)
    recipes = asked.recipes or (asked.sample * 20 if asked.sample else 100_000)
    say(f"{recipes:,} changed recipes")
    fuzzed = fuzz(recipes, asked.seed, asked.jobs)
    command = " ".join(["python benchmarks/faults/run.py", *_given()])
    minutes = (time.monotonic() - started) / 60
    measured = Measured(
        Tally(swept.outcomes),
        fuzzed,
        canaries,
        command,
        minutes,
        swept.curves,
        swept.wrong,
        sorted(swept.sampled),
    )
    text = table(measured)
    print(text, flush=True)
    for page in asked.copied:
        drawn = page.with_suffix(".svg")
        into_page(page, f"{text}\n\n![loss curves, and faults by method]({drawn.name})")
        drawn.write_text(picture(measured.curves, measured.tally), "utf-8")
    for failure in measured.failures:
        print(f"FAILED: {failure}", flush=True)
    return 1 if measured.failures else 0


def _in_memory() -> str | None:
    """Return where files are kept in memory, unless TMPDIR says otherwise.

    What a killed process has written stays there as it does on a disk, and a sync costs nothing.
    """
    place = Path("/dev/shm")
    roomy = place.is_dir() and shutil.disk_usage(place).free > 4e9
    return str(place) if roomy and "TMPDIR" not in os.environ else None


def _given() -> list[str]:
    return sys.argv[1 : sys.argv.index("--copied")]


def say(text: str) -> None:
    """Tell how far it is."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
