"""PPO beside TRL's: the same policy, reward model, prompts, order and settings, in turn.

    python -m venv trl && trl/bin/pip install torch==2.13.0 trl==1.12.0 peft
    python benchmarks/ppo_trl/run.py --trl-python trl/bin/python
    ... --quick        # two small steps, to try the harness
    ... --page         # write the section of docs/ppo.md too

TRL 1.12 is the last that has PPO, so it lives in an environment of its own. It takes part twice: as
its own examples have it, and with the least value model it can be given. Each run is a fresh
process, and contestants take turns (A B C, B C A, ...), each round with another seed. Speeds are
those of the steps alone, memory the process's high-water mark; what was learnt is judged by one
piece of code. Lines of JSON go to --out. Exits with 1 where llmft does not win.
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

from contestants import OURS, TRL, Contestant, run_once
from prepare import prepare, write_inputs
from task import TASKS, Task, quick
from verdict import missed, table

HERE = Path(__file__).parent


def main() -> int:
    """Run what was asked for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl-python", help="the interpreter of the environment with TRL 1.12")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="two small steps, one seed")
    parser.add_argument("--page", action="store_true", help="write the section of docs/ppo.md")
    parser.add_argument("--work", type=Path, help="a folder to keep models and policies in")
    parser.add_argument("--out", type=Path, default=HERE / "results.jsonl")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(asked.threads)
    seeds = asked.seeds[:1] if asked.quick else asked.seeds
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in asked.tasks:
            task = quick(TASKS[name]) if asked.quick else TASKS[name]
            work = (asked.work or Path(scratch)).resolve()
            results.append(measure(task, work, seeds, asked.trl_python))
            print(table(results[-1:]), flush=True)
            asked.out.write_text("".join(json.dumps(one) + "\n" for one in results), "utf-8")
    if asked.trl_python is None:
        print("TRL took no part: --trl-python names no environment with TRL 1.12")
        return 0
    if asked.page:
        from page import write_section

        write_section(results)
    lost = missed(results)
    for line in lost:
        print(f"missed: {line}")
    return 1 if lost else 0


def measure(task: Task, work: Path, seeds: list[int], trl_python: str | None) -> dict[str, Any]:
    """Return what every contestant took and reached with every seed, and what the task was."""
    folder = work / task.model
    if not (folder / "facts.json").exists():
        prepare(folder, task.model)
    write_inputs(folder, task, seeds)
    taking_part = [OURS, *(TRL if trl_python else ())]
    taken: dict[str, list[dict[str, Any]]] = {c.name: [] for c in taking_part}
    policies: dict[tuple[str, int], Path] = {}
    for number, seed in enumerate(seeds):
        for contestant in in_turn(taking_part, number):
            out = Path(tempfile.mkdtemp(prefix=f"{contestant.folder}-{seed}-", dir=folder))
            figures = run_once(contestant, folder, out, seed, trl_python or "")
            taken[contestant.name].append({"seed": seed, **figures})
            policies[contestant.name, number] = out / "policy"
            print(f"{task.name}, seed {seed}, {contestant.name}: {figures['cpu']:.1f} CPU s",
                  file=sys.stderr, flush=True)  # fmt: skip
    result: dict[str, Any] = {"task": task.name, "episodes": task.rollouts, "taken": taken}
    if task.judged:
        judged = judge(folder, [folder / "policy", *policies.values()])
        result["start"] = judged[str(folder / "policy")]
        for (name, number), policy in policies.items():
            taken[name][number]["judged"] = judged[str(policy)]
    return result


def in_turn(contestants: list[Contestant], number: int) -> list[Contestant]:
    """Return who starts when in a round: another one each time."""
    first = number % len(contestants)
    return [*contestants[first:], *contestants[:first]]


def judge(folder: Path, policies: list[Path]) -> dict[str, dict[str, float]]:
    """Return what judge.py finds of each policy."""
    out = folder / "judged.json"
    command = [sys.executable, str(HERE / "judge.py"), str(folder), str(out), *map(str, policies)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    found: dict[str, dict[str, float]] = json.loads(out.read_text("utf-8"))
    return found


if __name__ == "__main__":
    sys.exit(main())
