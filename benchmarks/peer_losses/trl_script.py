"""TRL's script of the trainer in sys.argv[1], as `trl sft --config FILE` and the others run it."""

from __future__ import annotations

import runpy
import sys

import trl  # noqa: F401 - imported before the forks
from transformers import trainer  # noqa: F401
from trl.trainer import dpo_trainer, kto_trainer, reward_trainer, sft_trainer  # noqa: F401


def start() -> None:
    """Run it; the trainer's name stands in trainer.txt."""
    with open("trainer.txt", encoding="utf-8") as file:
        name = file.read()
    sys.argv[0] = name
    runpy.run_module(f"trl.scripts.{name}", run_name="__main__", alter_sys=True)
