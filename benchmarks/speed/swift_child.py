"""A task with ms-swift's SFT, in this process: one of an environment with ms-swift.

    python swift_child.py FOLDER OUT

Its own command line with the task's settings; the clock runs while its trainer trains. Gradient
checkpointing is off, and rows are taken in the order of the file, as for every contestant.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import transformers
from clock import Clock
from model_folder import start_alike
from workload import read_task

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main(folder: Path, out: Path) -> None:
    """Train the task, and write what the clock says."""
    clock = Clock()
    own = transformers.Trainer.train

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        start_alike(self.model)
        clock.start()
        done = own(self, *args, **kwargs)
        clock.losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        clock.stop(out)
        return done

    transformers.Trainer.train = train
    from swift import sft_main

    task = read_task(folder)
    with tempfile.TemporaryDirectory() as scratch:
        rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
        data = Path(scratch) / "rows.jsonl"
        lines = (
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": row["prompt"]},
                        {"role": "assistant", "content": row["completion"]},
                    ]
                }
            )
            for row in rows
        )
        data.write_text("\n".join(lines) + "\n", "utf-8")
        sft_main(
            [
                "--model", str(folder / "model"), "--model_type", "llama", "--template", "dummy",
                "--dataset", str(data), "--dataset_shuffle", "false",
                "--train_dataloader_shuffle", "false", "--split_dataset_ratio", "0",
                "--tuner_type", "lora", "--lora_rank", str(task.rank),
                "--lora_alpha", str(2 * task.rank), "--lora_dropout", "0",
                "--target_modules", *TARGETS, "--torch_dtype", task.dtype,
                "--max_steps", str(task.steps), "--learning_rate", str(task.rate),
                "--per_device_train_batch_size", str(task.batch),
                "--gradient_accumulation_steps", str(task.accumulation),
                "--lr_scheduler_type", "constant", "--warmup_ratio", "0", "--weight_decay", "0",
                "--adam_beta2", "0.999", "--optim", "adamw_torch", "--logging_steps", "1",
                "--gradient_checkpointing", "false", "--save_strategy", "no",
                "--max_length", str(task.shape.positions), "--output_dir", scratch,
                "--use_cpu", "true", "--report_to", "none",
            ]
        )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
