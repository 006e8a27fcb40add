"""A base of Llama 3 8B's shape with random weights, and how fast it is trained."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from record import Check

from llmft.modeling.recompute import checkpoint_layers

SHAPE = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
TINY = {
    "vocab_size": 600, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip

# Operations a trained token: 15.0 G of frozen products forward and as many back for the layers'
# and the head's inputs, and 1.9 G of causal attention at 2,048 tokens. Nothing computed twice.
OPERATIONS = 32.1e9


def base(check: Check, bits: int = 16) -> Any:
    """Return the frozen base, bfloat16; of 4 bits as bitsandbytes stores it (NF4, double)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from llmft.modeling import attention

    shape = SHAPE if check.device.type == "cuda" else TINY
    options = {"max_position_embeddings": 8192, "tie_word_embeddings": False, "eos_token_id": 256}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape, **options))
    rotary = type(model.model.rotary_emb)(model.config)
    model = model.to(torch.bfloat16).to_empty(device=check.device)
    model.model.rotary_emb = rotary.to(check.device)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            _ = weight.normal_(std=0.02) if weight.dim() > 1 else weight.fill_(1)
    if bits == 4:
        _pack(model, check.device)
    attention.register()
    model.set_attn_implementation(attention.NAME)
    return model.requires_grad_(False)


def _pack(model: Any, device: torch.device) -> None:
    import bitsandbytes as bnb

    stored = {"quant_type": "nf4", "compress_statistics": True}
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, torch.nn.Linear) or name == "lm_head":
            continue
        packed = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=torch.bfloat16,
            **stored,
        )  # fmt: skip
        packed.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, **stored)
        packed.support_avx512bf16_for_cpu = False
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, packed.to(device))
    model.is_quantized = model.is_loaded_in_4bit = True


def attach(model: Any, method: str, **settings: Any) -> Any:
    """Return the base with an adapter of rank 16."""
    from llmft.registry.registry import Registry

    cls = Registry.discover().method("adapter", method)
    return cls(cls.Config(method=method, r=16, lora_alpha=32.0, **settings)).attach(model)


def rows(check: Check, lengths: list[int]) -> list[Any]:
    """Return encoded rows of these lengths, every token trained on."""
    from llmft.api import Encoded

    most = 100_000 if check.device.type == "cuda" else 500
    ids = [tuple((i * 7919 + n) % most + 1 for i in range(t)) for n, t in enumerate(lengths)]
    return [Encoded(row, row, f"row {n}") for n, row in enumerate(ids)]


def trained(
    check: Check, model: Any, items: list[Any], batch: int, steps: int, **settings: Any
) -> list[tuple[float, int]]:
    """Train for some steps in llmft's own loop; return when each ended, and the tokens it had."""
    from llmft_alignments.sft import CompletionLoss

    from llmft.api.train_settings import TrainSettings
    from llmft.training import loop

    ends: list[tuple[float, int]] = []
    seen: list[int] = []

    class Counted(CompletionLoss):
        def loss(self, model: Any, batch: Any) -> Any:
            seen.append(sum(len(row.input_ids) for row in batch))
            return super().loss(model, batch)

    def on_step(*_: Any) -> None:
        check.wait()
        ends.append((time.perf_counter(), sum(seen)))
        seen.clear()

    options = {"max_steps": steps, "per_device_train_batch_size": batch, "bf16": True,
               "optim": "adamw_torch_fused", **settings}  # fmt: skip
    loop.train(model, items, Counted(), TrainSettings(**options), seed=0, on_step=on_step)
    return ends


def speed(
    check: Check,
    name: str,
    method: str = "lora",
    *,
    bits: int = 16,
    checkpointed: bool = True,
    lengths: tuple[int, ...] = (2048, 2048, 2048, 2048),
    steps: int = 7,
    change: Callable[[Any], None] | None = None,
    **settings: Any,
) -> None:
    """Tell the median time of a step over one pass of rows, tokens a second, and peak memory.

    change: what is done to the base before the adapter is attached.
    """
    if check.device.type != "cuda":
        lengths = tuple(max(2, length // 32) for length in lengths)
    gc.collect()
    model = base(check, bits)
    if change:
        change(model)
    if checkpointed:
        checkpoint_layers(model)
    model = attach(model, method, **settings)
    watch_memory(check)
    items = rows(check, list(lengths) * steps)
    ends = trained(check, model, items, len(lengths), steps, gradient_checkpointing=checkpointed)
    say_speed(check, name, ends)


def watch_memory(check: Check) -> None:
    """Count the peak of memory from here."""
    if check.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def say_speed(check: Check, name: str, ends: list[tuple[float, int]]) -> None:
    """Tell what the ends of steps, and their tokens, say of the speed; the first two warm up."""
    each = sorted((b - a, n) for (a, _), (b, n) in pairwise(ends[1:]))
    rate = sum(n for _, n in each) / sum(seconds for seconds, _ in each)
    ms = 1e3 * each[len(each) // 2][0]
    facts: dict[str, Any] = {"ms": round(ms, 1), "tokens_per_s": round(rate)}
    if check.device.type == "cuda":
        facts["share_of_matmul"] = round(rate * OPERATIONS / check.ceiling, 3)
        facts["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        facts["reserved_gb"] = round(torch.cuda.max_memory_reserved() / 1e9, 2)
    check.say(speed=name, **facts)
