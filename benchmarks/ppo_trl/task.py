"""What is learnt, and with which settings: read by both sides, in either environment.

Imports the standard library only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Task:
    """Settings in the names of TRL's PPOConfig, which llmft's `ppo` has too.

    model: 'embedded', whose reward can be learnt, or 'wide', random weights with a vocabulary of
    32,000, on which speed and memory are measured. batch: answers of a step, learnt from in
    `num_ppo_epochs` times `num_mini_batches` updates.
    """

    name: str
    model: str
    steps: int
    batch: int
    response_length: int
    learning_rate: float
    lr_scheduler_type: str = "linear"
    num_ppo_epochs: int = 4
    num_mini_batches: int = 4
    temperature: float = 1.0
    missing_eos_penalty: float = 1.0
    kl_coef: float = 0.05
    kl_estimator: str = "k1"
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    gamma: float = 1.0
    lam: float = 0.95
    whiten_rewards: bool = False
    r: int = 16
    lora_alpha: int = 32
    target_modules: tuple[str, ...] = LINEAR

    @property
    def rollouts(self) -> int:
        """Answers that are drawn and learnt from in the whole run."""
        return self.steps * self.batch

    @property
    def judged(self) -> bool:
        """Whether its reward means something, so that what was learnt is judged."""
        return self.model == "embedded"


TASKS = {
    task.name: task
    for task in (
        Task("remarks", "embedded", steps=16, batch=64, response_length=32, learning_rate=3e-4),
        Task("remarks, slowly", "embedded", steps=16, batch=64, response_length=32,
             learning_rate=1e-4),
        Task("wide", "wide", steps=3, batch=32, response_length=48, learning_rate=1e-4),
    )
}  # fmt: skip
SHARED = (
    "num_ppo_epochs", "num_mini_batches", "response_length", "temperature", "missing_eos_penalty",
    "kl_coef", "kl_estimator", "cliprange", "cliprange_value", "vf_coef", "gamma", "lam",
    "whiten_rewards",
)  # fmt: skip
"""The settings of PPO itself, which both sides are given by the same names."""


def quick(task: Task) -> Task:
    """Return a task of two steps, to try the harness; its figures mean little."""
    return replace(task, steps=2, batch=16)


def shared_options(task: Task) -> dict[str, Any]:
    """Return what both sides' PPO is told."""
    return {name: getattr(task, name) for name in SHARED}


def write_task(folder: Path, task: Task) -> None:
    """Write the task's settings into its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "task.json").write_text(json.dumps(asdict(task)), "utf-8")


def read_task(folder: Path) -> Task:
    """Return what `write_task` wrote."""
    data: dict[str, Any] = json.loads((folder / "task.json").read_text("utf-8"))
    return Task(**{**data, "target_modules": tuple(data["target_modules"])})


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a line of JSON for each row."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return what `write_rows` wrote."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
