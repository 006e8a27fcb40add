"""The same loop on TRL's SFTTrainer, in a process that forks: what server.py runs for raw.py.

Its command line: the folder of model and rows, the folder to write to, steps, save_steps.
"""

from __future__ import annotations

import builtins
import os
import sys
import traceback
from pathlib import Path
from typing import Any

_WAITING: list[Any] = []


def warm() -> None:
    """Import what a run imports."""
    import safetensors.torch  # noqa: F401
    import torch
    from peft import LoraConfig  # noqa: F401
    from transformers import AutoModelForCausalLM  # noqa: F401
    from trl import SFTTrainer  # noqa: F401

    torch.set_num_threads(1)


def install(kind: str, at: int = 0) -> Any:
    """Prepare a fault; it waits until training begins, so that caches do not count."""
    from faults import Events

    events = Events(kind, at)
    _WAITING.append(events)
    return events


def main(argv: list[str]) -> int:
    """Train, going on from the last checkpoint if there is one, and save the adapter."""
    try:
        _train(*argv)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _train(home: str, out: str, steps: str, save_steps: str) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from transformers.trainer_utils import get_last_checkpoint
    from trl import SFTConfig, SFTTrainer

    set_seed(17)
    rows = [{"prompt": f"say {n}:", "completion": f" {n % 7}"} for n in range(18)]
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(f"{home}/model"),
        processing_class=AutoTokenizer.from_pretrained(f"{home}/model"),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(r=2, lora_dropout=0.2, target_modules="all-linear"),
        args=SFTConfig(
            output_dir=out, max_steps=int(steps), per_device_train_batch_size=3,
            gradient_accumulation_steps=2, learning_rate=0.01, warmup_steps=2, logging_steps=1,
            save_strategy="steps", save_steps=int(save_steps), save_total_limit=2,
            report_to="none", seed=17, use_cpu=True, disable_tqdm=True, bf16=False,
            gradient_checkpointing=False, dataloader_pin_memory=False,
        ),
    )  # fmt: skip
    if _WAITING:
        _watch(_WAITING[0])
    last = get_last_checkpoint(out) if Path(out).is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model(f"{out}/final")
    trainer.state.save_to_json(f"{out}/final/trainer_state.json")


def _watch(events: Any) -> None:
    """Put an event at each change of the disk: what faults.py watches, and files of Python's."""
    import faults
    import safetensors.torch
    import torch

    faults.watch(events)
    for module in list(sys.modules.values()):
        if getattr(module, "safe_save_file", None):
            module.safe_save_file = safetensors.torch.save_file
    real_open, save = builtins.open, torch.save

    def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        stream = real_open(file, mode, *args, **options)
        if set(mode) & set("wax") and not str(file).startswith("/dev/"):
            events.meets("write")  # it is there, and empty
        return stream

    def half_saved(value: Any, path: Any, *args: Any, **options: Any) -> None:
        builtins.open = real_open
        save(value, path, *args, **options)
        builtins.open = opened
        if isinstance(path, str | os.PathLike):
            events.meets("write", lambda: os.truncate(path, os.path.getsize(path) // 2))

    builtins.open, torch.save = opened, half_saved
