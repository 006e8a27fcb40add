"""Measures what PPO teaches: by a learnt reward model, and by a rule.

    python benchmarks/ppo.py                   # three seeds of the quick recipe, and of a rule
    python benchmarks/ppo.py --only model      # the quick recipe alone

The quick recipe's policy is judged by what its reward model was to learn: whether a remark is a
welcome one, of its own answers and those of the stage it started from to the same held-out
questions. Exits with 1 where a promise of the documentation is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from llmft.assets.remarks import UNWELCOME, WELCOME

LEAST_WINS, MOST_KL = 0.70, 5.0
HELD_OUT = 349
RULE_RECIPE = """
recipe: 1
name: ppo_rule
seed: 17
model: {path: "embedded:model"}
stages:
  - name: sft
    adapter: {method: lora, r: 16, lora_alpha: 32}
    alignment: {method: sft}
    data: {method: triviaqa, path: "embedded:trivia"}
    train: {max_steps: 40, learning_rate: 2e-3, per_device_train_batch_size: 32}
    evaluate: {metrics: [exact_match], max_new_tokens: 16}
  - name: ppo
    start_from: sft
    alignment:
      method: ppo
      reward: {method: exact_match}
      response_length: 16
      temperature: 1.0
      num_mini_batches: 2
      num_generations: 2
      kl_coef: 0.02
    data: {method: prompts, path: "embedded:prompts", columns: {answers: aliases}}
    train:
      max_steps: 60
      learning_rate: 3e-4
      lr_scheduler_type: cosine
      per_device_train_batch_size: 32
      logging_steps: 5
    evaluate: {metrics: [exact_match], holdout: 0.25, max_new_tokens: 16}
"""


def main() -> int:
    """Measure what was asked for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--only", choices=["model", "rule"])
    asked = parser.parse_args()
    good = True
    if asked.only != "rule":
        good &= by_a_reward_model(asked.seeds)
    if asked.only != "model":
        good &= by_a_rule(asked.seeds)
    return 0 if good else 1


def by_a_reward_model(seeds: list[int]) -> bool:
    """Run the quick recipe once a seed, and judge its answers by what is really welcome."""
    _head(
        "seed", "reward", "after", "kl", "wins", "losses", "win rate", "welcome", "after", "seconds"
    )
    good = True
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            # Every held-out question, and every answer to it, is looked at.
            sets = [f"seed={seed}", f"stages.ppo.evaluate.limit={HELD_OUT}",
                    f"stages.ppo.evaluate.samples={HELD_OUT}"]  # fmt: skip
            result = run_recipe("ppo_quick", sets, folder)["ppo"]
            seconds = time.monotonic() - started
            (path,) = Path(folder).glob("ppo_quick/*/stages/ppo/samples.jsonl")
            before, after = answers_of(path)
        same = before.keys() & after.keys()
        wins = sum(after[q] > before[q] for q in same)
        losses = sum(after[q] < before[q] for q in same)
        rate = wins / max(wins + losses, 1)
        scores = result["before"], result["after"]
        _row(
            seed, scores[0]["reward"], scores[1]["reward"], scores[1]["kl"], wins, losses, rate,
            _mean(before), _mean(after), round(seconds),
        )  # fmt: skip
        good &= rate >= LEAST_WINS and scores[1]["kl"] <= MOST_KL
        good &= scores[1]["reward"] > scores[0]["reward"]
    return good


def answers_of(path: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Return how welcome each question's answer is, before and after: 1, 0, or -1 if unwelcome."""
    found: dict[str, dict[str, float]] = {"before": {}, "after": {}}
    for line in path.read_text("utf-8").splitlines():
        sample = json.loads(line)
        found[sample["when"]][sample["prompt"]] = welcome(sample["answer"])
    return found["before"], found["after"]


def welcome(answer: str) -> float:
    """Return 1 for an answer that ends in a welcome remark, -1 for an unwelcome one, else 0."""
    text = answer.strip()
    return float(text.endswith(WELCOME)) - float(text.endswith(UNWELCOME))


def by_a_rule(seeds: list[int]) -> bool:
    """Let exact match be the reward, once a seed, and look whether it rises on other questions."""
    print()
    _head("seed", "reward", "after", "exact match", "after", "kl", "seconds")
    good = True
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            recipe = Path(folder) / "rule.yaml"
            recipe.write_text(RULE_RECIPE, "utf-8")
            started = time.monotonic()
            result = run_recipe(str(recipe), [f"seed={seed}"], folder)["ppo"]
        before, after = result["before"], result["after"]
        _row(
            seed, before["reward"], after["reward"], before["exact_match"], after["exact_match"],
            after["kl"], round(time.monotonic() - started),
        )  # fmt: skip
        good &= after["reward"] > before["reward"]
        good &= after["exact_match"] >= before["exact_match"]
    return good


def run_recipe(recipe: str, overrides: list[str], folder: str) -> dict[str, Any]:
    """Run a recipe in a new process, as a user does, and return its stages' results."""
    command = [sys.executable, "-m", "llmft", "run", recipe, "--json", "--output-dir", folder]
    command += [word for override in overrides for word in ("--set", override)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"'{recipe}' failed:\n{done.stdout}{done.stderr}")
    stages: dict[str, Any] = json.loads(done.stdout)["stages"]
    return stages


def _mean(values: dict[str, float]) -> float:
    return sum(values.values()) / max(len(values), 1)


def _head(*names: str) -> None:
    print("  ".join(f"{name:>11}" for name in names))


def _row(*cells: float) -> None:
    shown = [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells]
    print("  ".join(f"{cell:>11}" for cell in shown), flush=True)


if __name__ == "__main__":
    sys.exit(main())
