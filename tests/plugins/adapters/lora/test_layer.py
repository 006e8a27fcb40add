"""LoRA's own forward pass: PEFT's numbers and gradients, in one step of the graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from llmft_adapters.lora import Lora
from llmft_adapters.lora.layer import LoraForward, lora_linear, sum_over_rows
from peft import get_peft_model
from torch import nn

from llmft.testing import measures, tiny_gpt2, tiny_llama


def lora(**settings: Any) -> Lora:
    return Lora(Lora.Config(method="lora", **settings))


def both(make: Any, **settings: Any) -> tuple[Any, Any]:
    """Our model and PEFT's, from one start, B no longer zero."""
    adapter, models = lora(r=4, use_rslora=True, **settings), []
    for ours in (True, False):
        base = make()
        measures.seed()
        peft = get_peft_model(base, adapter.peft_config(base)) if not ours else None
        models.append(peft or adapter.attach(base))
        measures.nudge(models[-1])
    return models[0], models[1]


def fast_layers(model: Any) -> list[Any]:
    return [m for m in model.modules() if isinstance(vars(m).get("forward"), LoraForward)]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_logits_and_gradients_are_those_of_peft(make: Any, dropout: float) -> None:
    mine, its = both(make, lora_dropout=dropout)
    assert bool(fast_layers(mine)) == (make is tiny_llama)  # GPT-2 has Conv1D, which stays PEFT's
    assert measures.distance(measures.logits(its), measures.logits(mine)) <= 1e-5
    found, wanted = measures.gradients(mine), measures.gradients(its)
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert measures.distance(wanted[name], found[name]) <= 1e-5, name


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [2, 3])  # fewer than the weight's 5 columns, and more
def test_the_product_and_all_its_gradients_are_the_plain_ones(
    scaled: bool, biased: bool, rows: int
) -> None:
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, A, B, m = numbers(2, rows, 5), numbers(2, 5), numbers(4, 2), numbers(4)
    m[1] = 0.0  # a row of the base may be all zeros
    W, b, weight = numbers(4, 5), numbers(4) if biased else None, numbers(2, rows, 4)
    found = []
    for fast in (True, False):
        x_, A_, B_, m_ = leaves = [t.clone().requires_grad_() for t in (x, A, B, m)]
        if fast:
            out = lora_linear(x_, W, b, A_, B_, 0.7, m_ if scaled else None)
        else:
            out = (x_ @ W.T + 0.7 * (x_ @ A_.T) @ B_.T) * (m_ if scaled else 1)
            out = out + b if biased else out
        (out * weight).sum().backward()
        found.append([out.detach(), *(leaf.grad for leaf in leaves[: 4 if scaled else 3])])
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain)


def test_a_sum_in_short_walks_is_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmft_adapters.lora.layer._SUMMED", 4)
    monkeypatch.setattr("llmft_adapters.lora.layer._IN_A_CACHE", 0)
    a, b = torch.randn(11, 3), torch.randn(11, 3)
    torch.testing.assert_close(sum_over_rows(a, b), (a * b).sum(0))


@pytest.mark.parametrize("how", ["trained bias", "hook", "bfloat16", "autocast", "merged", "off"])
def test_where_a_layer_is_not_plain_peft_s_own_pass_is_taken(how: str) -> None:
    """Each of these would be lost, or be computed in another type, in the fast pass."""
    outputs = []
    for model in both(tiny_llama):
        for layer in (m for m in model.modules() if hasattr(m, "lora_A")):
            if how == "trained bias":
                layer.base_layer.bias = nn.Parameter(torch.ones(layer.out_features))
            if how == "hook":
                layer.base_layer.register_forward_hook(lambda _, given, out: out + 1)
        if how == "bfloat16":
            model.bfloat16()
            for name, parameter in model.named_parameters():
                parameter.data = parameter.data.float() if "lora" in name else parameter.data
        if how == "merged":
            model.merge_adapter()
        if how == "off":
            model.disable_adapter_layers()
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            outputs.append(measures.logits(model))
        if how == "trained bias":
            measures.gradients(model)
            bias = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.bias
            outputs[-1] = torch.cat([outputs[-1].flatten(), bias.grad])
    assert measures.same(outputs[1], outputs[0])
