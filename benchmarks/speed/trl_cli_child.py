"""A task with TRL's command line, `trl sft --config`: in the process that TRL launches.

    python trl_cli_child.py FOLDER OUT

TRL hands its script to accelerate, which starts a second process; this file is that process too,
so that the script's trainer runs under the clock. Settings are those of trl_child.py.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

from clock import SPENT
from trainer_clock import TARGETS, read_rows, training_arguments, watch, write_rows
from workload import read_task

OUT = "LLMFT_SPEED_OUT"
"""The environment variable with the file for the figures: set in the launched process only."""


def main(folder: Path, out: Path) -> None:
    """Launch `trl` with the task's settings."""
    from accelerate.commands.launch import launch_command
    from trl.cli import accelerate_launcher
    from trl.cli.main import main as trl

    own = accelerate_launcher.launch_training_script

    def launch(arguments: Any) -> None:
        arguments.training_script = __file__
        os.environ |= {OUT: str(out), SPENT: str(time.process_time())}
        launch_command(arguments)

    accelerate_launcher.launch_training_script = lambda **kwargs: own(
        **kwargs, launch_command_fn=launch
    )
    task = read_task(folder)
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        data.mkdir()
        write_rows(data / "train.jsonl", read_rows(folder))
        settings = training_arguments(task, scratch) | {
            "model_name_or_path": str(folder / "model"), "dtype": task.dtype,
            "dataset_name": str(data), "use_peft": True, "lora_r": task.rank,
            "lora_alpha": 2 * task.rank, "lora_dropout": 0.0, "lora_target_modules": TARGETS,
            "gradient_checkpointing": False, "max_length": task.shape.positions,
            "train_sampling_strategy": "sequential", "eval_strategy": "no",
            "num_processes": 1, "num_machines": 1, "mixed_precision": "no", "dynamo_backend": "no",
        }  # fmt: skip
        recipe = Path(scratch) / "train.yaml"
        recipe.write_text(json.dumps(settings), "utf-8")  # JSON is YAML
        trl([task.alignment, "--config", str(recipe)])


def script() -> None:
    """Run TRL's script of SFT under the clock."""
    watch(Path(os.environ[OUT]))
    runpy.run_path(str(resources.files("trl.scripts") / "sft.py"), run_name="__main__")


if __name__ == "__main__":
    if OUT in os.environ:
        script()
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
