"""The alignment handbook's script of the trainer in trainer.txt, as `accelerate launch` runs it."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import trl  # noqa: F401 - imported before the forks
from transformers import trainer  # noqa: F401
from trl.trainer import dpo_trainer, orpo_trainer, sft_trainer  # noqa: F401


def start() -> None:
    """Run it from the checkout that PEER_CHECKOUT names."""
    name = Path("trainer.txt").read_text("utf-8")
    sys.argv[0] = name
    script = Path(os.environ["PEER_CHECKOUT"]) / "scripts" / f"{name}.py"
    runpy.run_path(str(script), run_name="__main__")
