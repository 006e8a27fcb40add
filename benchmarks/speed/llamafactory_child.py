"""A task with LLaMA-Factory, in this process: one of an environment with LLaMA-Factory.

    python llamafactory_child.py FOLDER OUT

`llamafactory-cli train` with the task's settings; the clock runs while its trainer trains. The
template puts nothing between prompt and answer. Gradient checkpointing is off, and rows are taken
in the order of the file, as for every contestant.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from trainer_clock import TARGETS, training_arguments, watch
from workload import read_task


def main(folder: Path, out: Path) -> None:
    """Train the task, and write what the clock says."""
    watch(out)
    sys.modules["torchaudio"] = ModuleType("torchaudio")  # has no CPU build; text needs none of it
    from llamafactory.cli import main as llamafactory_cli
    from llamafactory.data.formatter import StringFormatter
    from llamafactory.data.template import register_template

    del sys.modules["torchaudio"]
    register_template(
        name="plain", format_user=StringFormatter(slots=["{{content}}"]),
        format_assistant=StringFormatter(slots=["{{content}}", {"eos_token"}]),
    )  # fmt: skip
    task = read_task(folder)
    answers = ("chosen", "rejected")
    columns = {"prompt": "prompt", "response": "completion"}
    if task.in_pairs:
        columns = {"prompt": "prompt"} | {name: name for name in answers}
    rows = {"file_name": str(folder / "rows.jsonl"), "columns": columns, "ranking": task.in_pairs}
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "dataset_info.json").write_text(json.dumps({"rows": rows}), "utf-8")
        settings = training_arguments(task, scratch) | {
            "stage": task.alignment, "do_train": True, "finetuning_type": "lora",
            "model_name_or_path": str(folder / "model"), "template": "plain",
            "dataset_dir": scratch, "dataset": "rows", "disable_shuffling": True,
            "cutoff_len": task.shape.positions, "lora_rank": task.rank,
            "lora_alpha": 2 * task.rank, "lora_dropout": 0.0, "lora_target": ",".join(TARGETS),
            "disable_gradient_checkpointing": True,
        }  # fmt: skip
        recipe = Path(scratch) / "train.yaml"
        recipe.write_text(json.dumps(settings), "utf-8")  # JSON is YAML
        sys.argv = ["llamafactory-cli", "train", str(recipe)]
        llamafactory_cli()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
