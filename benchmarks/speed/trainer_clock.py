"""Times transformers' Trainer from outside, in the process of a peer that trains with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clock import Clock

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def watch(out: Path, prepare: Callable[[Any], None] = lambda trainer: None) -> None:
    """Let every Trainer begin with the adapter that all share, and write its figures.

    prepare: is given the trainer first.
    """
    import transformers
    from model_folder import broadcast_parameters

    own = transformers.Trainer.train

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        clock = Clock()
        prepare(self)
        broadcast_parameters(self.model)
        clock.start()
        done = own(self, *args, **kwargs)
        clock.losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        clock.stop(out)
        return done

    transformers.Trainer.train = train


def read_rows(folder: Path) -> list[dict[str, str]]:
    """Return the task's rows."""
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text("utf-8").splitlines()]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows in a peer's own form, and return the file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def training_arguments(task: Any, scratch: str) -> dict[str, Any]:
    """Return the task's settings by the names of transformers' TrainingArguments."""
    return {
        "output_dir": scratch, "max_steps": task.steps, "learning_rate": task.rate,
        "per_device_train_batch_size": task.batch,
        "gradient_accumulation_steps": task.accumulation, "lr_scheduler_type": "constant",
        "weight_decay": 0.0, "adam_beta2": 0.999, "optim": "adamw_torch",
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True,
        "bf16": False,
    }  # fmt: skip
