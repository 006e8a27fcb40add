"""TRL's script of the trainer in sys.argv[1], as `trl sft --config FILE` and the others run it."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import trl  # noqa: F401 - imported before the forks
import yaml
from transformers import trainer  # noqa: F401
from trl.trainer import dpo_trainer, kto_trainer, reward_trainer, sft_trainer  # noqa: F401


def start() -> None:
    """Run it; the name stands in trainer.txt. ORPO and CPO are examples, of PEER_CHECKOUT.

    Those read no file, so that its keys are given as flags.
    """
    name = Path("trainer.txt").read_text("utf-8")
    sys.argv[0] = name
    if name in ("orpo", "cpo"):
        keys = yaml.safe_load(Path("config.yaml").read_text("utf-8"))
        words = ((f"--{key}", str(value)) for key, value in keys.items())
        sys.argv = [name, *(word for pair in words for word in pair)]
        script = Path(os.environ["PEER_CHECKOUT"]) / "examples" / "scripts" / f"{name}.py"
        runpy.run_path(str(script), run_name="__main__")
        return
    runpy.run_module(f"trl.scripts.{name}", run_name="__main__", alter_sys=True)
