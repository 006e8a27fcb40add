"""Time `llmft run` up to its first step beside what it cannot do without, and beside its peers.

    python benchmarks/speed/start.py [--rounds 5] [--page]

The bare contestant imports torch, transformers, peft and accelerate, loads the model and its
tokenizer, and attaches an adapter. "trl" is TRL's trainer in a program of its own, "trl sft" its
command line; the peers are those of run.py, where LLMFT_SPEED_PEERS has them. Each run is a fresh
process; contestants take turns. Exits with 1 where llmft's median CPU seconds are above the bare
ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from contestants import HERE, Contestant, llmft, of_peer, run_once, trl, trl_cli
from page import machine
from peers import left_out, present, versions
from workload import TASKS, write_task

CONTESTANTS = (
    Contestant("llmft", llmft),
    Contestant("bare", lambda folder, out: [
        sys.executable, str(HERE / "bare_child.py"), str(folder), str(out)
    ]),
    Contestant("trl", trl),
    Contestant("trl sft", trl_cli),
    *map(of_peer, present()),
)  # fmt: skip


def main() -> int:
    """Print the table, and return 1 where llmft starts too late."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--page", action="store_true", help="fill the table of the docs")
    asked = parser.parse_args()
    for line in left_out():
        print(line, flush=True)
    task = replace(TASKS["sft"], steps=1)
    taken: dict[str, list[dict[str, Any]]] = {c.name: [] for c in CONTESTANTS}
    with tempfile.TemporaryDirectory() as folder:
        write_task(Path(folder), task)
        subprocess.run([sys.executable, str(HERE / "model_folder.py"), folder], check=True)
        for _ in range(asked.rounds):
            for contestant in CONTESTANTS:
                taken[contestant.name].append(run_once(contestant, Path(folder), threads=1))
    rows = []
    print(f"{'':13}{'CPU s':>10}{'wall s':>10}{'x bare':>10}")
    bare = statistics.median(run["ready_cpu"] for run in taken["bare"])
    for name, runs in taken.items():
        cpu = statistics.median(run["ready_cpu"] for run in runs)
        wall = statistics.median(run["ready"] for run in runs)
        rows.append({"contestant": name, "cpu": cpu, "wall": wall, "ratio": cpu / bare,
                     "stack": machine(), "peers": versions()})  # fmt: skip
        print(f"{name:13}{cpu:>10.2f}{wall:>10.2f}{cpu / bare:>10.2f}")
    (HERE / "start.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    if asked.page:
        from page import fill

        fill("start", rows)
    return 1 if rows[0]["ratio"] > 1.0 else 0


if __name__ == "__main__":
    sys.exit(main())
