"""GRPO beside TRL's: the same policy, prompts, order, rewards and settings, in turn.

    python benchmarks/grpo_trl/run.py            # needs trl, as llmft does
    ... --quick        # two small steps, to try the harness
    ... --page         # write the section of docs/grpo.md too

Each run is a fresh process on one thread in float32; the two take turns, and the first to start
changes with the seed. Figures are those of the steps alone, memory is the process's high-water
mark, and what was learnt is judged by one piece of code. Lines of JSON go to --out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PPO = HERE.parent / "ppo_trl"
sys.path.insert(0, str(PPO))

from contestants import lay_stopwatch, run_child  # noqa: E402 - in benchmarks/ppo_trl
from export import merge_stage  # noqa: E402
from prepare import run_recipe, wide  # noqa: E402
from task import LINEAR, read_rows, write_rows  # noqa: E402

PAGE = HERE.parents[1] / "docs" / "grpo.md"
BEGIN, END = "<!-- grpo_trl:begin -->", "<!-- grpo_trl:end -->"
CONTESTANTS = ("llmft", "trl")
HEAD = (
    "task", "contestant", "CPU s", "x CPU", "spread", "episodes per CPU s", "peak MB", "x peak",
    "reward", "spread", "held out", "spread",
)  # fmt: skip
TEXT = """\
`python benchmarks/grpo_trl/run.py`, on one thread, float32, TRL {trl}. Both sides start from the
same policy with a fresh LoRA, take the same prompts in the same order, and have the same settings
by the same names; the rewards are llmft's own functions on both sides. TRL takes all answers of a
step in one pass, llmft those of as many as a step has prompts, so that memory is not like for like.
Each run is a fresh process, the two took turns, and {seeds} seeds were run{load};
figures are medians, a spread goes from the least to the most, and x is TRL's figure over llmft's.

- `trivia`: the embedded model after a few steps of SFT, {steps} steps of {prompts} prompts x
  {group} answers. *reward*: the mean over all episodes of training. *held out*: the same of one
  answer to each of {held_out} other prompts after the last step.
- `wide`: a random Llama of 15 million parameters with a vocabulary of 32,000, for speed and memory
  only.

{table}
"""


@dataclass(frozen=True)
class Task:
    """prompts: of a step, with `group` answers each, of `length` tokens at most."""

    name: str
    steps: int
    prompts: int
    group: int
    length: int
    learning_rate: float
    rewards: tuple[dict[str, Any], ...]
    sft_steps: int = 40

    @property
    def episodes(self) -> int:
        """Answers that are drawn and learnt from in the whole run."""
        return self.steps * self.prompts * self.group

    @property
    def judged(self) -> bool:
        """Whether there is anything to be learnt."""
        return self.name == "trivia"


TASKS = {
    "trivia": Task("trivia", 30, 16, 8, 16, 3e-4, (
        {"method": "exact_match", "partial": 0.3},
        {"method": "format", "max_words": 6, "one_line": True, "weight": 0.1},
    )),
    "wide": Task("wide", 4, 8, 8, 48, 1e-4, ({"method": "length", "target": 40},)),
}  # fmt: skip
HELD_OUT = 160


def main() -> int:
    """Run what was asked for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--quick", action="store_true", help="two small steps, one seed")
    parser.add_argument("--page", action="store_true", help="write the section of docs/grpo.md")
    parser.add_argument("--load", default="", help="what else ran, such as 'beside other work'")
    parser.add_argument("--out", type=Path, default=HERE / "results.jsonl")
    asked = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    seeds, results = asked.seeds[:1] if asked.quick else asked.seeds, []
    with tempfile.TemporaryDirectory() as scratch:
        for name in asked.tasks:
            task = TASKS[name]
            if asked.quick:
                task = replace(task, steps=2, prompts=4, group=4, sft_steps=2)
            results.append(measure(task, Path(scratch) / name, seeds))
            print(table(results[-1:]), flush=True)
            asked.out.write_text("".join(json.dumps(one) + "\n" for one in results), "utf-8")
    if asked.page:
        write_page(results, asked.load)
    return 0


def measure(task: Task, folder: Path, seeds: list[int]) -> dict[str, Any]:
    """Return what both took and reached with every seed, and what the task was."""
    prepare(task, folder)
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
    for number, seed in enumerate(seeds):
        write_order(task, folder, seed)
        for name in CONTESTANTS if number % 2 == 0 else CONTESTANTS[::-1]:
            out = folder / f"{name}-{seed}"
            out.mkdir()
            if name == "llmft":
                made = json.loads(run_child(ours(task, folder, out, seed),
                                            [lay_stopwatch(out), PPO]))  # fmt: skip
                merge_stage(Path(made["folder"]), "grpo", str(folder / "policy"), out / "policy")
            else:
                command = [sys.executable, str(HERE / "trl_child.py"), str(folder), str(out)]
                run_child([*command, str(seed)], [PPO])
            figures = json.loads((out / "figures.json").read_text("utf-8"))
            if task.judged:
                figures["held_out"] = judge(task, folder, out / "policy")
            taken[name].append({"seed": seed, **figures})
            print(f"{task.name}, seed {seed}, {name}: {figures['cpu']:.1f} CPU s",
                  file=sys.stderr, flush=True)  # fmt: skip
    return {"task": asdict(task), "taken": taken, "trl": version("trl")}


def version(package: str) -> str:
    """Return the version of an installed package."""
    from importlib.metadata import version

    return version(package)


def prepare(task: Task, folder: Path) -> None:
    """Write `policy/`, `rows.jsonl` and `held_out.jsonl`, which both sides start from."""
    folder.mkdir(parents=True)
    (folder / "task.json").write_text(json.dumps(asdict(task)), "utf-8")
    if not task.judged:
        wide(folder)
        rows = [
            {"prompt": row["prompt"], "aliases": ["a"]} for row in read_rows(folder / "rows.jsonl")
        ]
        write_rows(folder / "rows.jsonl", rows)
        return
    from llmft.toolkit import read_records

    stage = {
        "name": "sft", "adapter": {"method": "lora", "r": 16, "lora_alpha": 32},
        "alignment": {"method": "sft"}, "data": {"method": "triviaqa", "path": "embedded:trivia"},
        "train": {
            "max_steps": task.sft_steps, "learning_rate": 2e-3, "per_device_train_batch_size": 32,
        },
    }  # fmt: skip
    base = "embedded:model"
    merge_stage(run_recipe(folder, "sft", stage, base), "sft", base, folder / "policy")
    rows = [dict(record) for _, record in read_records("embedded:prompts", "train")]
    rows = [{"prompt": row["prompt"], "aliases": row["aliases"]} for row in rows]
    write_rows(folder / "held_out.jsonl", rows[-HELD_OUT:])
    write_rows(folder / "rows.jsonl", rows[:-HELD_OUT])


def write_order(task: Task, folder: Path, seed: int) -> None:
    """Write the order of the prompts in which llmft's loop takes them."""
    from llmft.api.train_settings import TrainSettings
    from llmft.training.step_plan import Plan

    count = len(read_rows(folder / "rows.jsonl"))
    settings = TrainSettings(max_steps=task.steps, per_device_train_batch_size=task.prompts)
    plan = Plan.of(count, settings, seed)
    order = [i for step in range(plan.steps) for batch in plan.step_batches(step) for i in batch]
    (folder / f"order-{seed}.json").write_text(json.dumps(order), "utf-8")


def ours(task: Task, folder: Path, out: Path, seed: int) -> list[str]:
    """Return `llmft run` on the task's recipe, with a stopwatch as its tracker."""
    stage = {
        "name": "grpo",
        "adapter": {"method": "lora", "r": 16, "lora_alpha": 32, "target_modules": list(LINEAR)},
        "alignment": {
            "method": "grpo", "rewards": list(task.rewards), "num_generations": task.group,
            "max_completion_length": task.length,
        },
        "data": {
            "method": "prompts", "path": str(folder / "rows.jsonl"),
            "columns": {"answers": "aliases"},
        },
        "train": {
            "max_steps": task.steps, "per_device_train_batch_size": task.prompts,
            "learning_rate": task.learning_rate, "lr_scheduler_type": "cosine",
            "max_grad_norm": 1.0, "logging_steps": 1,
        },
    }  # fmt: skip
    recipe = {
        "recipe": 1, "name": "grpo", "seed": seed, "output_dir": str(out / "runs"),
        "model": {"path": str(folder / "policy")}, "plugins": ["ppo_stopwatch"],
        "trackers": [{
            "method": "ppo_stopwatch", "path": str(out / "figures.json"), "metrics": ["reward"],
        }],
        "stages": [stage],
    }  # fmt: skip
    path = out / "grpo.yaml"
    path.write_text(json.dumps(recipe), "utf-8")  # JSON is YAML
    return [sys.executable, "-m", "llmft", "run", str(path), "--json"]


def judge(task: Task, folder: Path, policy: Path) -> float:
    """Return the mean reward of one answer to each held-out prompt, sampled at temperature 1."""
    code = [sys.executable, str(HERE / "judge.py"), str(folder), str(policy)]
    done = subprocess.run(code, check=True, capture_output=True, text=True)
    return float(done.stdout)


def table(results: list[dict[str, Any]]) -> str:
    """Return the figures as a Markdown table."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for result in results:
        lines += ["| " + " | ".join(row) + " |" for row in rows_of(result)]
    return "\n".join(lines)


def rows_of(result: dict[str, Any]) -> list[list[str]]:
    """Return a row of text for each contestant, under HEAD."""
    task, taken = Task(**result["task"]), result["taken"]
    mine = taken["llmft"]
    found = []
    for name, runs in taken.items():
        ratios = [a["cpu"] / b["cpu"] for a, b in zip(runs, mine, strict=True)]
        cpu, peak = _median(runs, "cpu"), _median(runs, "peak")
        cells = [
            task.name, name, f"{cpu:.1f}", f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}", f"{task.episodes / cpu:.1f}",
            f"{peak / 1e6:.0f}", f"{peak / _median(mine, 'peak'):.2f}",
        ]  # fmt: skip
        for values in (
            [statistics.fmean(step["reward"] for step in run["steps"]) for run in runs],
            [run.get("held_out") for run in runs],
        ):
            given = [value for value in values if value is not None] if task.judged else []
            cells.append(f"{statistics.median(given):.3f}" if given else "")
            cells.append(f"{min(given):.3f} to {max(given):.3f}" if given else "")
        found.append(cells)
    return found


def write_page(results: list[dict[str, Any]], load: str) -> None:
    """Write the section of docs/grpo.md between its marks."""
    task = Task(**results[0]["task"])
    text = TEXT.format(
        trl=results[0]["trl"], seeds=len(results[0]["taken"]["llmft"]),
        load=f" {load}" if load else "", steps=task.steps, prompts=task.prompts, group=task.group,
        held_out=HELD_OUT, table=table(results),
    )  # fmt: skip
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{text}{END}{rest.partition(END)[2]}", "utf-8")


def _median(runs: list[dict[str, Any]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


if __name__ == "__main__":
    sys.exit(main())
