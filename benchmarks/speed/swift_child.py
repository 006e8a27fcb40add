"""A task with ms-swift, in this process: one of an environment with ms-swift.

    python swift_child.py FOLDER OUT

Its own command line with the task's settings; the clock runs while its trainer trains. Gradient
checkpointing is off, and rows are taken in the order of the file, as for every contestant.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from trainer_clock import TARGETS, read_rows, training_arguments, watch, write_rows
from workload import read_task


def main(folder: Path, out: Path) -> None:
    """Train the task, and write what the clock says."""
    watch(out)
    from swift import rlhf_main, sft_main

    task = read_task(folder)
    with tempfile.TemporaryDirectory() as scratch:
        data = write_rows(Path(scratch) / "rows.jsonl", [_row(row) for row in read_rows(folder)])
        settings = training_arguments(task, scratch)
        settings.pop("bf16")
        options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        options += [
            "--model", str(folder / "model"), "--model_type", "llama", "--template", "dummy",
            "--dataset", str(data), "--dataset_shuffle", "false",
            "--train_dataloader_shuffle", "false", "--split_dataset_ratio", "0",
            "--tuner_type", "lora", "--lora_rank", str(task.rank),
            "--lora_alpha", str(2 * task.rank), "--lora_dropout", "0",
            "--target_modules", *TARGETS, "--torch_dtype", task.dtype,
            "--gradient_checkpointing", "false", "--max_length", str(task.shape.positions),
        ]  # fmt: skip
        if task.alignment == "dpo":
            rlhf_main(["--rlhf_type", "dpo", *options])
        else:
            sft_main(options)


def _row(row: dict[str, str]) -> dict[str, object]:
    answer = row["chosen" if "chosen" in row else "completion"]
    said = [("user", row["prompt"]), ("assistant", answer)]
    made: dict[str, object] = {"messages": [{"role": r, "content": text} for r, text in said]}
    return made | ({"rejected_response": row["rejected"]} if "rejected" in row else {})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
