"""Measure a training step of DoRA against LoRA's: PEFT's DoRA, and ours.

    python benchmarks/dora_step.py [--width 512] [--layers 4] [--tokens 256] [--rounds 30]

One model, three adapters, forward and backward over the same batch in turn, so that a slow moment
falls on all alike; --in-4bit stores the base in 4 bits. Prints the median CPU seconds of a step of
LoRA, and the medians of each round's ratios to it. Random weights; one thread unless --threads says
more. --page measures the models of docs/performance.md, and fills its table.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from llmft_adapters.dora import Dora
from llmft_adapters.lora import Lora
from transformers import LlamaConfig, LlamaForCausalLM

from llmft.api.model_settings import ModelSource
from llmft.modeling.base_model import BaseModel

SIZES = ((256, 4), (512, 4), (1024, 2), (2048, 1))
"""Width and layers of the models on the page."""


def main() -> None:
    """Measure one model, or those of the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("width", 512), ("layers", 4), ("tokens", 256), ("rows", 4), ("rank", 8),
                          ("rounds", 30), ("threads", 1)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--in-4bit", action="store_true")
    parser.add_argument("--page", action="store_true", help="fill the table of the docs")
    parser.add_argument("--profile", action="store_true", help="print what takes longer, and go")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.profile:
        profile(asked)
        return
    sizes = [(w, n, q) for q in (False, True) for w, n in SIZES] if asked.page else []
    found = []
    for width, layers, in_4bit in sizes or [(asked.width, asked.layers, asked.in_4bit)]:
        of_this = {**vars(asked), "width": width, "layers": layers, "in_4bit": in_4bit}
        found.append(measure(argparse.Namespace(**of_this)))
        print(json.dumps(found[-1]), flush=True)
    if asked.page:
        sys.path.insert(0, str(Path(__file__).parent / "speed"))
        from page import fill

        fill("dora", found)


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Return the median CPU seconds of a step of each, and of their ratios to LoRA's."""
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
    ratios = {
        name: statistics.median(a / b for a, b in zip(values, seconds["lora"], strict=True))
        for name, values in seconds.items()
    }
    return {
        "width": asked.width, "base": "4 bits" if asked.in_4bit else "float32",
        "tokens": asked.rows * asked.tokens, "lora": statistics.median(seconds["lora"]),
        "peft": ratios["peft dora"], "ours": ratios["our dora"],
    }  # fmt: skip


def profile(asked: argparse.Namespace) -> None:
    """Print the operators of torch on which a step of our DoRA spends longer than one of LoRA."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watched

    torch.manual_seed(0)
    base = _base(asked)
    ids = torch.randint(0, 1000, (asked.rows, asked.tokens), device=base.device)
    spent: dict[str, dict[str, tuple[float, float]]] = {}
    for name, model in _adapted(base, asked).items():
        step = _step(model, ids)
        step()
        with watched(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(asked.rounds):
                step()
        spent[name] = {
            row.key: (row.self_cpu_time_total / asked.rounds, row.count / asked.rounds)
            for row in seen.key_averages()
        }
    lora, ours = spent["lora"], spent["our dora"]
    print(
        f"a step of LoRA takes {sum(t for t, _ in lora.values()) / 1000:.1f} ms; DoRA, over that:"
    )
    extra = {key: time - lora.get(key, (0.0, 0.0))[0] for key, (time, _) in ours.items()}
    for key in sorted(extra, key=lambda key: -extra[key])[:12]:
        calls = ours[key][1] - lora.get(key, (0.0, 0.0))[1]
        print(f"{extra[key] / 1000:8.2f} ms in {calls:5.0f} more calls of {key}")


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
        return BaseModel(ModelSource(path=folder)).load(options, varlen=False)


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
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)

    def step() -> float:
        started = time.process_time()
        model.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        taken = time.process_time() - started
        optimizer.step()  # what is kept until the next update is made anew
        return taken

    return step


if __name__ == "__main__":
    main()
