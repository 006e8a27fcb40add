"""Time llmft beside its peers: the same model, rows, batches and steps, in turn.

    python benchmarks/speed/run.py                          # every task, three rounds
    python benchmarks/speed/run.py --tasks sft,dpo --quick  # a few steps, to try the harness
    python benchmarks/speed/run.py --page                   # write docs/performance.md's tables too
    python benchmarks/speed/run.py --tasks dpo --page       # this task again, and keep the others
    python benchmarks/speed/run.py --larger --page          # the shape of a model of 135M

Each run is a fresh process, and contestants take turns (A B A B ...), so that a slow moment of the
machine falls on all alike. A ratio is TRL's median over llmft's; its spread goes from the smallest
to the largest ratio of one round. CPU seconds are those of the steps alone, what a
method needs before its first step (DPO's reference) included. Lines of JSON go to --out, in the
place of earlier ones of the same tasks; a quick run writes them only where --out is given. Exits
with 1 where losses differ, or where a bar is missed.

LLMFT_SPEED_PEERS names a folder with an environment for each peer: see peers.py.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import records
from contestants import CONTESTANTS, LIMIT, Contestant, run_once
from page import machine
from peers import PEERS, left_out
from table import BARS, losses_apart, summary, table
from workload import LARGER, TASKS, Task, quick, tokens, write_task

HERE = Path(__file__).parent


def main() -> int:
    """Run what was asked for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default="", help="names, with commas between; default: all")
    parser.add_argument("--larger", action="store_true", help="tasks at a realistic shape instead")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a few steps, one round")
    parser.add_argument("--page", action="store_true", help="fill the tables of the docs")
    parser.add_argument("--out", type=Path, help="a file, for results.jsonl")
    asked = parser.parse_args()
    if asked.quick and asked.page:
        parser.error("figures of a quick run do not go into the docs")
    section = "larger" if asked.larger else "tasks"
    known = LARGER if asked.larger else TASKS
    usual = HERE / ("larger.jsonl" if asked.larger else "results.jsonl")
    out = asked.out or (None if asked.quick else usual)
    tasks = [known[name] for name in asked.tasks.split(",") if name] or list(known.values())
    results = []
    for line in left_out():
        print(line, flush=True)
    for task in tasks:
        rounds = 1 if asked.quick else asked.rounds
        with tempfile.TemporaryDirectory() as folder:
            result = measure(quick(task) if asked.quick else task, Path(folder), rounds,
                             asked.threads)  # fmt: skip
        results.append(result)
        print(table([result], header=task is tasks[0]), flush=True)
        if out:
            whole = records.keep(out, [result], list(known))
    if asked.page:
        from page import fill

        fill(section, whole)
    return verdict(results)


def measure(task: Task, folder: Path, rounds: int, threads: int) -> dict[str, Any]:
    """Return what every contestant took in every round, and what the task was."""
    write_task(folder, task)
    subprocess.run([sys.executable, str(HERE / "model_folder.py"), str(folder)], check=True)
    taking_part = [c for c in CONTESTANTS if c.tasks(task)]
    taken: dict[str, list[dict[str, Any]]] = {c.name: [] for c in taking_part}
    products = []
    for number in range(rounds):
        products.append(run_once(LIMIT, folder, threads)["cpu"])
        for contestant in in_turn(taking_part, number):
            taken[contestant.name].append(run_once(contestant, folder, threads))
    versions = {peer.name: peer.version for peer in PEERS if peer.name in taken}
    return {
        "stack": machine(), "peers": versions, "task": task.name,
        "steps": task.steps, "rounds": rounds, "threads": threads,
        "tokens": tokens(task), "taken": taken, "products": products,
        "other_order": [c.name for c in taking_part if not c.same_order],
    }  # fmt: skip


def in_turn(contestants: Sequence[Contestant], number: int) -> list[Contestant]:
    """Return who starts when in a round: another one each time."""
    first = number % len(contestants)
    return [*contestants[first:], *contestants[:first]]


def verdict(results: list[dict[str, Any]]) -> int:
    """Print what is missed, and return the exit code."""
    missed = []
    for result in results:
        name = result["task"]
        found = summary(result)
        for other, apart in losses_apart(result).items():
            if apart > (TASKS | LARGER)[name].tolerance:
                missed.append(f"{name}: {other}'s losses are {apart:.1e} apart")
        for other, (least, what) in BARS.get(name, {}).items():
            ratio = found[other]["ratio"]
            if ratio < least:
                missed.append(f"{name}: {ratio:.2f} x {other}'s {what}, where {least:g} is the bar")
        for other, row in found.items():
            if not other.startswith("llmft") and row["ratio"] <= 1:
                missed.append(f"{name}: {other} is ahead")
        if "trl" in found and found["trl"]["peak"] < found["llmft"]["peak"]:
            missed.append(f"{name}: more memory than TRL")
    for line in missed:
        print(f"missed: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
