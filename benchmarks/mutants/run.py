"""Changes llmft's source in small ways, one at a time, and counts how often a test notices.

`python benchmarks/mutants/run.py` takes 200 mutants at random, as many of each area, runs the test
files nearest to each changed file (those at its path in tests/, and those in areas.py), and writes
docs/mutants.md. What a plain run of these files lets pass is tried with the cases that only
`pytest --extended` has, and the page tells how many those kill; tests marked `slow` never run.
`--sample N --seed S` takes others, and writes only where `--page` says so; `--file` keeps to some
files, `--list` runs nothing. It works on copies of the tree, and leaves with 1 below 90 %.
`--results FILE` notes each outcome there. What the file has as killed is not tried again, so that a
stopped run goes on, and after new tests only the survivors are tried. `--fresh SEED N` tells on the
page of another sample too, which an earlier run noted in that file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from areas import AREAS, files_of, tests_of
from children import Copy, Job, copied, run_all, warm
from equivalent import EQUIVALENT
from mutate import Mutant, mutants, parses
from page import Outcome, as_page, as_text

ROOT = Path(__file__).resolve().parents[2]
WANTED = 0.9


def main() -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, help="so many mutants; default: 200, and the page")
    parser.add_argument("--seed", type=int, default=1, help="which of them")
    parser.add_argument("--area", action="append", choices=[*AREAS], help="keep to this area")
    parser.add_argument("--file", action="append", help="keep to files whose path has this in it")
    parser.add_argument("--jobs", type=int, default=2, help="tests side by side")
    parser.add_argument("--seconds", type=float, default=900.0, help="time for one mutant at most")
    parser.add_argument("--green", action="store_true", help="the unchanged tree was just tested")
    parser.add_argument("--results", type=Path, help="note each outcome in this file, and go on")
    parser.add_argument("--page", type=Path, help="the page to write")
    parser.add_argument(
        "--fresh", nargs=2, type=int, metavar=("SEED", "N"), help="tell of this sample too"
    )
    parser.add_argument(
        "--note", default="", help="a text for the page, such as what was drawn from"
    )
    parser.add_argument("--list", action="store_true", help="show the mutants, and run nothing")
    asked = parser.parse_args()
    chosen = sample(ROOT, asked.sample or 200, asked.seed, asked.area or [*AREAS], asked.file)
    if asked.list:
        for area, mutant in chosen:
            print(f"{area}: {mutant.file}:{mutant.line} {mutant.what}")
            print(mutant.diff((ROOT / mutant.file).read_bytes()))
        return 0
    fresh = None
    if asked.fresh:
        seed, size = asked.fresh
        other = sample(ROOT, size, seed, [*AREAS], None)
        found = noted(asked.results, other)
        if len(found) < len(other):
            parser.error(f"--results has {len(found)} of the {len(other)} mutants of --fresh")
        fresh = (seed, in_order(found.values()))
    started = time.monotonic()
    killed = {m: one for m, one in noted(asked.results, chosen).items() if one.killed}
    left = [(area, mutant) for area, mutant in chosen if mutant not in killed]
    outcomes = in_order([
        *killed.values(),
        *measured(left, asked.jobs, asked.seconds, green=asked.green, results=asked.results),
    ])  # fmt: skip
    print(as_text(outcomes))
    print(f"\n{len(left)} tried in {(time.monotonic() - started) / 60:.0f} minutes")
    page = asked.page or (None if asked.sample else ROOT / "docs" / "mutants.md")
    if page:
        text = as_page(outcomes, asked.seed, counts(ROOT), fresh, asked.note)
        page.write_text(text, "utf-8")
    of = [outcome for outcome in outcomes if not outcome.reason]
    return int(sum(outcome.killed for outcome in of) < WANTED * len(of))


def sample(
    root: Path, size: int, seed: int, areas: Sequence[str], only: Sequence[str] | None
) -> list[tuple[str, Mutant]]:
    """Return so many mutants with their area, the areas in turn while they have any."""
    dice = random.Random(seed)
    stacks = {}
    for area in areas:
        files = [f for f in files_of(root, area) if not only or any(part in f for part in only)]
        stacks[area] = [mutant for file in files for mutant in mutants(root, file)]
        dice.shuffle(stacks[area])
    chosen: list[tuple[str, Mutant]] = []
    while len(chosen) < size and any(stacks.values()):
        for area in areas:
            if stacks[area] and len(chosen) < size:
                mutant = stacks[area].pop()
                if parses(mutant.source((root / mutant.file).read_bytes())):
                    chosen.append((area, mutant))
    return chosen


def noted(results: Path | None, chosen: Sequence[tuple[str, Mutant]]) -> dict[Mutant, Outcome]:
    """Return those of the mutants that a file has, with the last outcome of each."""
    if results is None or not results.exists():
        return {}
    lines = [Outcome(**json.loads(line)) for line in results.read_text("utf-8").splitlines()]
    found = {(one.file, one.line, one.diff): one for one in lines}
    keys = {m: (m.file, m.line, m.diff((ROOT / m.file).read_bytes())) for _, m in chosen}
    reasons = {key: EQUIVALENT.get((key[0], key[2]), "") for key in keys.values()}
    return {
        mutant: found[key] if found[key].killed else replace(found[key], reason=reasons[key])
        for mutant, key in keys.items()
        if key in found
    }


def in_order(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return outcomes by area, file and line."""
    return sorted(outcomes, key=lambda one: (one.area, one.file, one.line))


def counts(root: Path) -> dict[str, int]:
    """Return how many mutants there are in each area."""
    return {area: sum(len(mutants(root, file)) for file in files_of(root, area)) for area in AREAS}


def measured(
    chosen: Sequence[tuple[str, Mutant]],
    jobs: int,
    seconds: float,
    *,
    green: bool,
    results: Path | None = None,
) -> list[Outcome]:
    """Return what the nearest tests make of each mutant. green: they pass on the tree as it is."""
    warm()
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="llmft-mutants-", dir=place) as folder:
        copies = []
        for number in range(jobs):
            copies.append(Copy(copied(ROOT, Path(folder) / f"tree{number}")))
        if not green:
            _refuse_red(chosen, copies, seconds)
        all_jobs: list[Job] = []
        of_job: dict[int, tuple[str, Mutant]] = {}
        before_of = {m.file: (copies[0].root / m.file).read_bytes() for _, m in chosen}
        for area, mutant in chosen:
            before = before_of[mutant.file]
            source = mutant.source(before)
            job = Job(mutant.file, source, tests_of(ROOT, mutant.file), seconds)
            of_job[id(job)] = (area, mutant)
            all_jobs.append(job)

        done = []

        def tell(job: Job) -> None:
            area, mutant = of_job[id(job)]
            outcome = Outcome.of(area, mutant, before_of[mutant.file], job)
            done.append(outcome)
            if results:
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(outcome)) + "\n")
            word = "killed  " if outcome.killed else "SURVIVED"
            print(
                f"{len(done):4d}/{len(chosen)} {word} {job.took:5.1f} s"
                f" {mutant.file}:{mutant.line} {mutant.what} {outcome.by}",
                file=sys.stderr, flush=True,
            )  # fmt: skip

        run_all(all_jobs, copies, tell)
    return done


def _refuse_red(
    chosen: Sequence[tuple[str, Mutant]], copies: Sequence[Copy], seconds: float
) -> None:
    """Raise SystemExit where a test fails on the unchanged tree: it would kill every mutant."""
    tests = list(dict.fromkeys(t for _, m in chosen for t in tests_of(ROOT, m.file)))
    parts = [tests[number :: len(copies)] for number in range(len(copies))]
    red = []

    def tell(job: Job) -> None:
        print(f"unchanged: {len(job.tests)} files, {job.took:.0f} s", file=sys.stderr, flush=True)
        if job.code != 0:
            red.append(f"exit code {job.code}\n{job.said[-2000:]}")

    run_all([Job("", None, part, len(part) * seconds) for part in parts if part], copies, tell)
    if red:
        raise SystemExit("tests fail on the unchanged tree:\n" + "\n".join(red))


if __name__ == "__main__":
    sys.exit(main())
