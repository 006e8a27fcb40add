"""A task with Axolotl, in this process: one of an environment with Axolotl.

    python axolotl_child.py FOLDER OUT

`axolotl train` with the task's settings; the clock runs while its trainer trains. Gradient
checkpointing is off, and rows are taken in the order of the file, as for every contestant. Its
trainer would give each batch of an accumulation the same weight; here a batch weighs by its
answers' tokens, else the losses would not be equal.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from trainer_clock import TARGETS, read_rows, watch, write_rows
from workload import read_task


def by_tokens(trainer: Any) -> None:
    """Let the trainer hand the model the tokens of all batches of a step."""
    trainer.model_accepts_loss_kwargs = True


def main(folder: Path, out: Path) -> None:
    """Train the task, and write what the clock says."""
    os.environ |= {"AXOLOTL_DO_NOT_TRACK": "1", "DO_NOT_TRACK": "1"}  # else it reports each run
    watch(out, by_tokens)
    from axolotl.cli.train import do_cli

    task = read_task(folder)
    with tempfile.TemporaryDirectory() as scratch:
        rows = [
            {"segments": [
                {"label": False, "text": row["prompt"]},
                {"label": True, "text": row["completion"] + "</s>"},
            ]}
            for row in read_rows(folder)
        ]  # fmt: skip
        data = write_rows(Path(scratch) / "rows.jsonl", rows)
        settings = {
            "base_model": str(folder / "model"), "adapter": "lora", "lora_r": task.rank,
            "lora_alpha": 2 * task.rank, "lora_dropout": 0.0, "lora_target_modules": TARGETS,
            "datasets": [{"path": str(data), "ds_type": "json", "type": "input_output"}],
            "dataset_prepared_path": f"{scratch}/prepared", "val_set_size": 0,
            "shuffle_merged_datasets": False, "curriculum_sampling": True,
            "sequence_len": task.shape.positions, "sample_packing": False,
            "pad_to_sequence_len": False, "train_on_inputs": False, "group_by_length": False,
            "max_steps": task.steps, "micro_batch_size": task.batch,
            "gradient_accumulation_steps": task.accumulation, "learning_rate": task.rate,
            "lr_scheduler": "constant", "warmup_steps": 0, "optimizer": "adamw_torch",
            "weight_decay": 0.0, "max_grad_norm": 1.0, "bf16": False, "fp16": False, "tf32": False,
            "gradient_checkpointing": False, "logging_steps": 1, "save_strategy": "no",
            "output_dir": f"{scratch}/out", "use_wandb": False, "lora_qkv_kernel": True,
            "lora_o_kernel": True, "lora_mlp_kernel": False,  # the last needs a GPU
        }  # fmt: skip
        recipe = Path(scratch) / "train.yaml"
        recipe.write_text(json.dumps(settings), "utf-8")  # JSON is YAML
        sys.argv = sys.argv[:1]
        do_cli(str(recipe))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
