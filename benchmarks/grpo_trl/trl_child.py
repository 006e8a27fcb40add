"""GRPO by TRL's GRPOTrainer: `python trl_child.py TASK_FOLDER OUT SEED`, started by run.py.

OUT gets figures.json, and policy/, the trained policy with its LoRA merged.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from clock import Clock
from datasets import Dataset
from peft import LoraConfig
from task import LINEAR, read_rows
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Stopwatch(TrainerCallback):
    """Notes each step in a clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Note a step; the last log, of the whole run, has no reward."""
        if "reward" in logs:
            self.clock.step({"reward": logs["reward"]})


def reward_of(block: dict[str, Any]) -> Any:
    """Return llmft's reward function of a block, as TRL calls one."""
    from llmft.registry.registry import Registry

    cls = Registry.discover().method("reward", block["method"])
    made = cls(cls.Config(**block))

    def score(prompts: list[str], completions: list[str], aliases: Any, **_: Any) -> list[float]:
        asked = zip(prompts, completions, aliases, strict=True)
        return [float(made.score(prompt, said, right)) for prompt, said, right in asked]

    score.__name__ = block["method"]
    return score


def main() -> None:
    """Train, and write what it took and what it made."""
    folder, out, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    task = json.loads((folder / "task.json").read_text("utf-8"))
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    rows = read_rows(folder / "rows.jsonl")
    order = json.loads((folder / f"order-{seed}.json").read_text("utf-8"))
    clock = Clock()
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32),
        reward_funcs=[reward_of(block) for block in task["rewards"]],
        args=GRPOConfig(
            output_dir=str(out / "trainer"), seed=seed, max_steps=task["steps"],
            per_device_train_batch_size=task["prompts"] * task["group"],
            gradient_accumulation_steps=1, num_generations=task["group"],
            max_completion_length=task["length"], learning_rate=task["learning_rate"],
            reward_weights=[block.get("weight", 1.0) for block in task["rewards"]],
            lr_scheduler_type="cosine", warmup_steps=0, max_grad_norm=1.0, weight_decay=0.0,
            optim="adamw_torch", disable_dropout=True, shuffle_dataset=False, temperature=1.0,
            bf16=False, use_cpu=True, gradient_checkpointing=False, report_to="none",
            save_strategy="no", logging_steps=1, disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([rows[number] for number in order]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0,
            target_modules=list(LINEAR),
        ),
        callbacks=[Stopwatch(clock)],
    )  # fmt: skip
    clock.start()
    trainer.train()
    clock.stop(out / "figures.json")
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(out / "policy")
    tokenizer.save_pretrained(out / "policy")


if __name__ == "__main__":
    main()
