"""PPO by TRL's PPOTrainer, in an environment of its own; llmft is not there.

    python trl_side.py TASK_FOLDER OUT --seed 17 --value full

What TASK_FOLDER holds is written by prepare.py. The policy is a fresh LoRA on `policy/`, the
reference the same model with it off; reward and value model are `reward/`. OUT gets figures.json,
and policy/, the trained policy with its LoRA merged.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"}

import torch
from clock import Clock
from datasets import Dataset
from peft import LoraConfig, inject_adapter_in_model
from task import Task, read_rows, read_task, shared_options
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer
from trl.experimental.utils import get_reward

APART = 1e-4
"""How far rewards may be from those that llmft's reward model gives."""


def main() -> None:
    """Train, and write what it took and what it made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--value", choices=("full", "lora"), required=True)
    asked = parser.parse_args()
    task = read_task(asked.folder)
    clock = Clock()
    trainer = make_trainer(asked.folder, asked.out, task, asked.seed, asked.value, clock)
    check_rewards(trainer.reward_model, trainer.processing_class, asked.folder)
    clock.start()
    trainer.train()
    clock.stop(asked.out / "figures.json")
    merged = trainer.model.policy.merge_and_unload()
    merged.save_pretrained(asked.out / "policy")
    trainer.processing_class.save_pretrained(asked.out / "policy")


def make_trainer(
    folder: Path, out: Path, task: Task, seed: int, value: str, clock: Clock
) -> PPOTrainer:
    """Return TRL's trainer with models and prompts, ready to train.

    value: 'full' trains a whole value model, as TRL's own examples do; 'lora' an adapter and a
    head on it, which TRL leaves to its user.
    """
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    order = json.loads((folder / f"order-{seed}.json").read_text("utf-8"))
    texts = [row["prompt"] for row in read_rows(folder / "prompts.jsonl")]
    prompts = Dataset.from_list([{"input_ids": tokenizer(texts[i]).input_ids} for i in order])
    trainer = PPOTrainer(
        args=PPOConfig(**arguments(task, out, seed)),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32),
        ref_model=None,
        reward_model=scorer(folder),
        value_model=value_model(folder, task, value),
        train_dataset=prompts,
        peft_config=lora(task, "CAUSAL_LM"),
        callbacks=[Stopwatch(clock)],
    )
    trainer.remove_callback(PrinterCallback)
    # Its own shuffles; here each side takes the prompts in the order that llmft draws.
    loader = DataLoader(prompts, batch_size=task.batch, collate_fn=trainer.data_collator)
    trainer.dataloader = trainer.accelerator.prepare(loader)
    return trainer


def arguments(task: Task, out: Path, seed: int) -> dict[str, Any]:
    """Return the settings, those of Trainer that would differ from llmft's stated too."""
    return {
        **shared_options(task), "output_dir": str(out / "trainer"), "seed": seed,
        "total_episodes": task.rollouts, "per_device_train_batch_size": task.batch,
        "gradient_accumulation_steps": 1, "local_rollout_forward_batch_size": task.batch,
        "learning_rate": task.learning_rate, "lr_scheduler_type": task.lr_scheduler_type,
        "warmup_steps": 0, "optim": "adamw_torch", "weight_decay": 0.0, "stop_token": "eos",
        "bf16": False, "use_cpu": True, "gradient_checkpointing": False, "report_to": "none",
        "num_sample_generations": 0, "save_strategy": "no", "logging_steps": 1,
        "disable_tqdm": True,
    }  # fmt: skip


def lora(task: Task, kind: str | None) -> LoraConfig:
    """Return the adapter that both sides train."""
    return LoraConfig(
        task_type=kind, r=task.r, lora_alpha=task.lora_alpha, lora_dropout=0.0,
        target_modules=list(task.target_modules),
    )  # fmt: skip


def scorer(folder: Path) -> Any:
    """Return the reward model."""
    return AutoModelForSequenceClassification.from_pretrained(
        folder / "reward", num_labels=1, dtype=torch.float32
    )


def value_model(folder: Path, task: Task, how: str) -> Any:
    """Return the value model, which starts as the reward model."""
    model = scorer(folder)
    if how == "lora":
        model = inject_adapter_in_model(lora(task, None), model)
        model.score.requires_grad_(True)
    return model


def check_rewards(model: Any, tokenizer: Any, folder: Path) -> None:
    """Refuse to go on where TRL's way of scoring finds other rewards than llmft did."""
    rows = read_rows(folder / "scored.jsonl")
    batch = tokenizer.pad(
        {"input_ids": [row["prompt_ids"] for row in rows]}, return_tensors="pt"
    ).input_ids
    width = max(len(row["answer_ids"]) for row in rows)
    pad = tokenizer.pad_token_id
    answers = [row["answer_ids"] + [pad] * (width - len(row["answer_ids"])) for row in rows]
    whole = torch.cat((batch, torch.tensor(answers)), 1)
    with torch.no_grad():
        _, found, _ = get_reward(model.eval(), whole, pad, batch.shape[1])
    apart = (found - torch.tensor([row["reward"] for row in rows])).abs().max().item()
    if not apart < APART:
        raise SystemExit(f"the exported reward model's rewards are {apart:.1e} apart")


class Stopwatch(TrainerCallback):
    """Notes each step in a clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.clock.step({"score": logs["objective/scores"], "kl": logs["objective/kl"]})


if __name__ == "__main__":
    main()
