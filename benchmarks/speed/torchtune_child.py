"""A task with torchtune's LoRA recipe, in this process: one of an environment with torchtune.

    python torchtune_child.py FOLDER OUT

`lora_finetune_single_device` with the task's settings, its classes given by this file where
torchtune wants a class of the user's own. No checkpoint is written at the end. The output layer is
a copy of the embeddings: torchtune has no tied Llama of any size; it is frozen, so all is equal.
"""

from __future__ import annotations

import runpy
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from clock import Clock
from model_folder import fill_alike, untied_weights
from trainer_clock import read_rows
from workload import read_task

NAMES = {"attn": "self_attn", "output_proj": "o_proj", "w1": "gate_proj", "w2": "down_proj",
         "w3": "up_proj"}  # fmt: skip


class Tokens:
    """The task's tokenizer; torchtune asks it for the id of padding."""

    def __init__(self, path: str) -> None:
        from tokenizers import Tokenizer

        self.encode = Tokenizer.from_file(path).encode
        self.pad_id, self.end = 257, 256


class Rows:
    """The task's rows as torchtune takes them, tokenised when asked for."""

    def __init__(self, tokens: Tokens, folder: str) -> None:
        self.tokens, self.rows = tokens, read_rows(Path(folder))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, list[int]]:
        row = self.rows[place]
        prompt, answer = (self.tokens.encode(row[key]).ids for key in ("prompt", "completion"))
        answer = [*answer, self.tokens.end]
        return {"tokens": prompt + answer, "labels": [-100] * len(prompt) + answer}


class Losses(list[float]):
    """A metric logger that keeps the losses."""

    def log_config(self, config: Any) -> None:
        """Keep nothing of the settings."""

    def log_dict(self, payload: dict[str, Any], step: int) -> None:
        """Keep a step's loss."""
        self.append(float(payload["loss"]))


def constant(optimizer: Any, num_training_steps: int, last_epoch: int) -> Any:
    """Return a schedule that keeps the rate."""
    import torch

    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def main(folder: Path, out: Path) -> None:
    """Train the task, and write what the clock says."""
    import torch
    from omegaconf import OmegaConf

    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        recipe_file = metadata.distribution("torchtune").locate_file(
            "recipes/lora_finetune_single_device.py"
        )
        recipe_class = runpy.run_path(str(recipe_file))["LoRAFinetuneRecipeSingleDevice"]
        model = Path(scratch) / "model"
        model.mkdir()
        torch.save(untied_weights(folder), model / "model.bin")
        shutil.copy(folder / "model" / "config.json", model)
        settings = OmegaConf.create(_settings(folder, scratch))
        recipe = recipe_class(settings)
        recipe.setup(settings)
        fill_alike({_name(n): p.data for n, p in recipe.adapter_params.items() if "lora_a" in n})
        recipe.save_checkpoint = lambda epoch: None
        clock.start()
        recipe.train()
        clock.losses = list(recipe._metric_logger)
        clock.stop(out)


def _name(parameter: str) -> str:
    parts = parameter.removesuffix(".lora_a.weight").split(".")
    return ".".join(NAMES.get(part, part) for part in parts)


def _settings(folder: Path, scratch: str) -> dict[str, Any]:
    task = read_task(folder)
    shape = task.shape
    return {
        "output_dir": f"{scratch}/out", "device": "cpu", "dtype": "fp32", "seed": 0,
        "shuffle": False, "batch_size": task.batch, "epochs": 1, "compile": False,
        "max_steps_per_epoch": task.steps, "gradient_accumulation_steps": task.accumulation,
        "clip_grad_norm": 1.0, "resume_from_checkpoint": False, "log_every_n_steps": 1,
        "enable_activation_checkpointing": False,
        "model": {
            "_component_": "torchtune.models.llama2.lora_llama2",
            "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"],
            "apply_lora_to_mlp": True, "vocab_size": shape.vocabulary,
            "num_layers": shape.layers, "num_heads": shape.heads, "num_kv_heads": shape.heads,
            "embed_dim": shape.hidden, "max_seq_len": shape.positions,
            "intermediate_dim": shape.intermediate, "norm_eps": 1e-6, "lora_rank": task.rank,
            "lora_alpha": 2 * task.rank, "lora_dropout": 0.0,
        },
        "checkpointer": {
            "_component_": "torchtune.training.FullModelHFCheckpointer",
            "checkpoint_dir": f"{scratch}/model", "checkpoint_files": ["model.bin"],
            "output_dir": f"{scratch}/out", "model_type": "LLAMA2",
        },
        "tokenizer": {
            "_component_": "torchtune_child.Tokens", "path": f"{folder}/model/tokenizer.json"
        },
        "dataset": {"_component_": "torchtune_child.Rows", "folder": str(folder)},
        "optimizer": {
            "_component_": "torch.optim.AdamW", "fused": True, "weight_decay": 0.0,
            "lr": task.rate,
        },
        "lr_scheduler": {"_component_": "torchtune_child.constant"},
        "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
        "metric_logger": {"_component_": "torchtune_child.Losses"},
    }  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
