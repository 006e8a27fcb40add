"""Measure a training step of DoRA against LoRA's: PEFT's DoRA, and ours.

    python benchmarks/dora_step.py [--width 512] [--layers 4] [--tokens 256] [--rounds 30]

One model, three adapters, forward and backward over the same batch in turn, so that a slow moment
falls on all alike; --in-4bit stores the base in 4 bits. Prints the median seconds of a step, and
the median of each round's ratio to LoRA. Random weights; one thread unless --threads says more.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from typing import Any

import torch
from llmft_adapters.dora import Dora
from llmft_adapters.lora import Lora
from transformers import LlamaConfig, LlamaForCausalLM

from llmft import models
from llmft.settings import ModelSource


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("width", 512), ("layers", 4), ("tokens", 256), ("rows", 4), ("rank", 8),
                          ("rounds", 30), ("threads", 1)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--in-4bit", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    base = _base(asked)
    ids = torch.randint(0, 1000, (asked.rows, asked.tokens), device=base.device)
    steps = {name: _step(model, ids) for name, model in _adapted(base, asked).items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(asked.rounds + 3):
        for name, step in steps.items():
            taken = step()
            if number >= 3:
                seconds[name].append(taken)
    for name, values in seconds.items():
        ratio = statistics.median(
            mine / its for mine, its in zip(values, seconds["lora"], strict=True)
        )
        print(f"{name:10} {statistics.median(values):8.4f} s a step   {ratio:5.3f} x lora")


def _base(asked: argparse.Namespace) -> Any:
    config = LlamaConfig(
        vocab_size=1000, hidden_size=asked.width, intermediate_size=asked.width * 3,
        num_hidden_layers=asked.layers, num_attention_heads=asked.width // 64,
        num_key_value_heads=max(1, asked.width // 128),
    )  # fmt: skip
    options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
               "bnb_4bit_compute_dtype": "float32"} if asked.in_4bit else {}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        return models.load_base(ModelSource(path=folder), options, varlen=False)


def _adapted(base: Any, asked: argparse.Namespace) -> dict[str, Any]:
    from peft import get_peft_model

    settings = {"r": asked.rank, "lora_dropout": asked.dropout}
    lora = Lora(Lora.Config(method="lora", **settings))
    dora = Dora(Dora.Config(method="dora", **settings))
    bases = [copy.deepcopy(base) for _ in range(3)]
    return {
        "lora": lora.attach(bases[0]),
        "peft dora": get_peft_model(bases[1], dora.peft_config(bases[1])),
        "our dora": dora.attach(bases[2]),
    }


def _step(model: Any, ids: torch.Tensor) -> Any:
    model.train()

    def step() -> float:
        started = time.perf_counter()
        model.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        if ids.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return step


if __name__ == "__main__":
    main()
