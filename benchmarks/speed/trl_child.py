"""A task with TRL's own trainer, in this process.

    python trl_child.py FOLDER OUT [--padding-free] [--grouped]

Gradient checkpointing is off, as for every contestant, and mixed precision as the task has it;
everything else that is not the task's is TRL's default. Rows are taken in the order of the file,
or, with --grouped, by length. --padding-free: rows without padding, which TRL has for SFT.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    """Train the task, and write what the clock says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--padding-free", action="store_true")
    parser.add_argument("--grouped", action="store_true")
    asked = parser.parse_args()
    levers: dict[str, Any] = {}
    if asked.padding_free:
        levers |= {"padding_free": True, "max_length": None}  # no row is longer than it was
    if asked.grouped:
        levers["train_sampling_strategy"] = "group_by_length"
    from clock import Clock
    from model_folder import broadcast_parameters
    from transformers import TrainerCallback

    clock = Clock()

    class Note(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                clock.losses.append(logs["loss"])

    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(asked.folder, scratch, levers)
        broadcast_parameters(trainer.model)
        trainer.add_callback(Note())
        clock.start()
        trainer.train()
        clock.stop(asked.out)


def make_trainer(folder: Path, scratch: str, levers: dict[str, Any] | None = None) -> Any:
    """Return TRL's trainer of the task, its model loaded and its rows tokenised.

    levers: settings of TRL's config in place of its defaults.
    """
    import torch
    from datasets import Dataset, disable_caching
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from workload import read_task

    disable_caching()
    task = read_task(folder)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text("utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    reward = task.alignment == "reward"
    common: dict[str, Any] = {
        "output_dir": scratch, "per_device_train_batch_size": task.batch,
        "gradient_accumulation_steps": task.accumulation, "learning_rate": task.rate,
        "lr_scheduler_type": "constant", "max_steps": task.steps, "logging_steps": 1,
        "report_to": [], "use_cpu": True, "bf16": task.bf16, "optim": "adamw_torch",
        "gradient_checkpointing": False, "save_strategy": "no", "disable_tqdm": True,
        "max_length": task.shape.positions, "train_sampling_strategy": "sequential",
    } | (levers or {})  # fmt: skip
    lora = LoraConfig(
        task_type="SEQ_CLS" if reward else "CAUSAL_LM", r=task.rank, lora_alpha=2 * task.rank,
        target_modules=TARGETS, use_dora=task.adapter == "dora",
    )  # fmt: skip
    if reward:
        rows = [{key: row["prompt"] + row[key] for key in ("chosen", "rejected")} for row in rows]
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            folder / "model", num_labels=1, dtype=torch.float32
        )
    else:
        model = _causal(folder / "model", task)
    trainer_class, config_class = _classes(task.alignment)
    return trainer_class(
        model=model, args=config_class(**common), train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, peft_config=lora,
    )  # fmt: skip


def _causal(path: Path, task: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = None
    if task.in_4bit:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype="float32",
        )  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, task.dtype), quantization_config=quantization
    )


def _classes(alignment: str) -> tuple[Any, Any]:
    import trl

    if alignment == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOTrainer, ORPOConfig
    names = {"sft": "SFT", "dpo": "DPO", "reward": "Reward"}
    name = names[alignment]
    return getattr(trl, f"{name}Trainer"), getattr(trl, f"{name}Config")


if __name__ == "__main__":
    main()
