"""A task with litgpt's `finetune_lora`, in this process: one of an environment with litgpt.

    python litgpt_child.py FOLDER OUT

Its own loop with the task's settings. litgpt gives each batch of an accumulation the same weight,
clips no gradient and lowers the rate; here a batch weighs by its answers' tokens, the optimizer
clips at 1, and the rate is constant, as for every contestant: else the losses would not be equal.
Validation and the example it writes are left out.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import litgpt.finetune.lora as finetune
import torch
from clock import Clock
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.data import DataModule, SFTDataset, get_sft_collate_fn
from litgpt.prompts import Default
from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
from litgpt.utils import save_config
from model_folder import fill_alike, untied_weights
from torch.utils.data import DataLoader
from trainer_clock import read_rows
from workload import Task, read_task


class Clipped(torch.optim.AdamW):
    """AdamW that clips the gradients' norm at 1 before a step."""

    def step(self, closure: Any = None) -> Any:
        """Clip, and step."""
        torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 1.0)
        return super().step(closure)


class Rows(DataModule):
    """The task's rows, in the order of the file."""

    def __init__(self, rows: list[dict[str, str]]) -> None:
        super().__init__()
        self.rows = [{"instruction": r["prompt"], "output": r["completion"]} for r in rows]

    def connect(
        self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: Any = None
    ) -> None:
        """Take the tokenizer."""
        self.tokenizer, self.batch = tokenizer, batch_size

    def train_dataloader(self) -> Any:
        """Return the batches."""
        rows = SFTDataset(self.rows, self.tokenizer, prompt_style=Default())
        return DataLoader(rows, self.batch, collate_fn=get_sft_collate_fn(pad_id=257))

    val_dataloader = train_dataloader


def main(folder: Path, out: Path) -> None:
    """Train the task, and write what the clock says."""
    clock, task = Clock(), read_task(folder)
    rows = read_rows(folder)
    weights, batches = _weights(rows, task), []
    own_fit, own_loss = finetune.fit, finetune.chunked_cross_entropy

    def loss(logits: Any, targets: Any) -> Any:
        weighted = own_loss(logits, targets) * weights[len(batches)]
        batches.append(weighted.detach())
        return weighted

    def fit(**kwargs: Any) -> None:
        _start_alike(kwargs["model"])
        clock.start()
        own_fit(**kwargs)
        many = task.accumulation
        sums = [sum(batches[i : i + many]) / many for i in range(0, len(batches), many)]
        clock.losses = [float(each) for each in sums]
        clock.stop(out)
        sys.exit()

    finetune.fit, finetune.chunked_cross_entropy = fit, loss
    finetune.validate = lambda *args, **kwargs: torch.zeros(())
    finetune.get_lr_scheduler = lambda optimizer, **_: torch.optim.lr_scheduler.ConstantLR(
        optimizer, factor=1.0
    )
    with tempfile.TemporaryDirectory() as scratch:
        _write_checkpoint(folder, Path(scratch) / "model", task)
        finetune.setup(
            Path(scratch) / "model", Path(scratch) / "out", precision="32-true",
            lora_r=task.rank, lora_alpha=2 * task.rank, lora_dropout=0.0, lora_key=True,
            lora_projection=True, lora_mlp=True, data=Rows(rows),
            train=TrainArgs(
                save_interval=None, log_interval=1, micro_batch_size=task.batch,
                global_batch_size=task.batch * task.accumulation, lr_warmup_steps=0, epochs=2,
                max_steps=task.steps,
            ),
            eval=EvalArgs(interval=10**9, max_new_tokens=1, final_validation=False),
            optimizer={
                "class_path": f"{Clipped.__module__}.Clipped",
                "init_args": {"lr": task.rate, "weight_decay": 0.0},
            },
        )  # fmt: skip


def _weights(rows: list[dict[str, str]], task: Task) -> list[float]:
    """Return what each batch weighs: its share of its step's answer tokens, times the batches."""
    counts = [len(row["completion"]) + 1 for row in rows]
    sizes = [sum(counts[i : i + task.batch]) for i in range(0, len(counts), task.batch)]
    many = task.accumulation
    steps = [sum(sizes[i : i + many]) for i in range(0, len(sizes), many) for _ in range(many)]
    return [many * size / step for size, step in zip(sizes, steps, strict=True)]


def _start_alike(model: Any) -> None:
    names = {"attn.proj": "self_attn.o_proj", "mlp.fc_1": "mlp.gate_proj",
             "mlp.fc_2": "mlp.up_proj", "mlp.proj": "mlp.down_proj"}  # fmt: skip
    named = {}
    for name, parameter in model.named_parameters():
        if not name.endswith("lora_A"):
            continue
        _, _, place = name.removesuffix(".lora_A").partition("transformer.h.")
        number, _, layer = place.partition(".")
        if layer == "attn.qkv":
            for part, rows in zip("qkv", parameter.data.chunk(3), strict=True):
                named[f"layers.{number}.self_attn.{part}_proj"] = rows
        else:
            named[f"layers.{number}.{names[layer]}"] = parameter.data
    fill_alike(named)


def _write_checkpoint(folder: Path, to: Path, task: Task) -> None:
    """Write the model in litgpt's form; its output layer is a copy of the embeddings, frozen."""
    shutil.copytree(folder / "model", to, ignore=shutil.ignore_patterns("*.safetensors"))
    shape = task.shape
    config = Config(
        name="llama", block_size=shape.positions, vocab_size=shape.vocabulary,
        padded_vocab_size=shape.vocabulary, n_layer=shape.layers, n_head=shape.heads,
        n_embd=shape.hidden, rotary_percentage=1.0, parallel_residual=False, bias=False,
        norm_class_name="RMSNorm", norm_eps=1e-6, mlp_class_name="LLaMAMLP",
        intermediate_size=shape.intermediate,
    )  # fmt: skip
    save_config(config, to)
    weights: dict[str, Any] = {}
    copy_weights_hf_llama(config, {}, weights, untied_weights(folder))
    torch.save(weights, to / "lit_model.pth")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
