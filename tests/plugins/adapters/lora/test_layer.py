"""LoRA's own forward pass: PEFT's numbers and gradients, in one step of the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from llmft_adapters.dora import Dora
from llmft_adapters.lora import Lora, dropout_mask, frozen_weight, linear
from llmft_adapters.lora.layer import LoraForward
from llmft_adapters.lora.linear import lora_linear, lora_update, sum_over_rows
from peft import get_peft_model
from torch import nn

from llmft.testing import measures, tiny_gpt2, tiny_llama

from ..conftest import mask_of, quantised, with_our_masks


def lora(**settings: Any) -> Lora:
    return Lora(Lora.Config(method="lora", **settings))


def both(make: Any, **settings: Any) -> tuple[Any, Any]:
    """Our model and PEFT's, from one start, B no longer zero."""
    adapter, models = lora(r=4, use_rslora=True, **settings), []
    for ours in (True, False):
        base = make()
        measures.seed()
        peft = get_peft_model(base, adapter.peft_config(base)) if not ours else None
        models.append(with_our_masks(peft) if peft else adapter.attach(base))
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


@pytest.mark.parametrize("pieces", [True, False])  # as on a CPU, and as on a GPU
@pytest.mark.parametrize("biased", [False, True])
def test_a_dropped_update_and_all_its_gradients_are_the_plain_ones(
    pieces: bool, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmft_adapters.lora.linear.draws_in_table", lambda _: pieces)
    monkeypatch.setattr("llmft_adapters.lora.linear._IN_A_NEAR_CACHE", 20)  # four rows at a time
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, A, B, W = numbers(2, 7, 5), numbers(2, 5), numbers(4, 2), numbers(4, 5)
    b, weight, unpacked = numbers(4) if biased else None, numbers(2, 7, 4), []
    found = []
    for way in ("fast", "beside", "plain"):
        torch.manual_seed(3)
        x_, A_, B_ = leaves = [t.clone().requires_grad_() for t in (x, A, B)]
        if way == "fast":
            out = lora_linear(
                x_, W, b, A_, B_, 0.7, dropout=0.4, again=lambda: unpacked.append(1) or W
            )
        elif way == "beside":
            out = lora_update(torch.nn.functional.linear(x_, W, b), x_, A_, B_, 0.7, dropout=0.4)
        else:
            out = torch.nn.functional.linear(x_, W, b)
            out = out + 0.7 * ((x_ * mask_of(x, 0.4, pieces)) @ A_.T) @ B_.T
        (out * weight).sum().backward()
        found.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for mine, beside, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain)
        torch.testing.assert_close(beside, plain)
    assert unpacked == [1], "once for the backward pass"


def test_masks_drop_their_share_and_are_others_each_time() -> None:
    torch.manual_seed(0)
    masks = [dropout_mask.draw(200, 500, 0.25, torch.float32) for _ in range(2)]
    for mask in masks:
        assert mask.unique().tolist() == pytest.approx([0.0, 4 / 3])
        assert float((mask == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
        assert float((mask == 0).float().mean(0).std()) == pytest.approx(0.031, abs=0.005)
    both = ((masks[0] == 0) & (masks[1] == 0)).float().mean()
    assert float(both) == pytest.approx(0.0625, abs=0.005), "one says nothing of the other"
    torch.manual_seed(0)
    assert torch.equal(dropout_mask.draw(200, 500, 0.25, torch.float32), masks[0])


@pytest.mark.parametrize(("rows", "width"), [(5, 3), (1, 40)])  # in pieces; a row too wide
def test_a_mask_longer_than_the_table_is_put_together(
    rows: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dropout_mask, "_TABLE", 12)
    dropout_mask._table.cache_clear()
    assert dropout_mask.draw(rows, width, 0.5, torch.float32).shape == (rows, width)
    dropout_mask._table.cache_clear()


HALF = ["bfloat16", "autocast", "autocast of bfloat16", "4 bits", "8 bits"]


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("how", HALF)
def test_where_types_are_mixed_it_errs_no_more_than_peft(
    how: str, method: str, tmp_path: Path
) -> None:
    """Of gradients as they are in float32, from the same weights.

    Without autocast PEFT's update is computed in float32, and ours as under autocast.
    """
    adapter: Any = Dora(Dora.Config(method="dora", r=4)) if method == "dora" else lora(r=4)
    if how == "8 bits" and method == "dora":
        pytest.skip("PEFT loses the scales of 8 bits on a CPU")
    options = {"4 bits": {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"},
               "8 bits": {"load_in_8bit": True}}  # fmt: skip
    found: list[dict[str, torch.Tensor]] = []
    autocast = "autocast" in how
    for number, which in enumerate(("exact", "PEFT", "ours")):
        base = tiny_llama()
        for parameter in base.parameters():
            parameter.data = parameter.data.bfloat16().float()
        if how in options:
            base = quantised(base, tmp_path / str(number), **options[how])
            if which == "exact":
                base = with_numbers(base)
        elif which != "exact" and how != "autocast":
            base = base.bfloat16()
        measures.seed()
        if which == "ours":
            model = adapter.attach(base)
            assert fast_layers(model) or method == "dora"
        else:
            model = get_peft_model(base, adapter.peft_config(base))
        measures.nudge(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and which != "exact"):
            found.append(measures.gradients(model))
    exact, its, mine = found
    assert exact.keys() == mine.keys()

    def error(of: dict[str, torch.Tensor], name: str) -> float:
        return float((of[name].float() - exact[name]).norm() / exact[name].norm())

    assert all(of.dtype == torch.float32 for of in mine.values())
    errors = [(error(mine, name), error(its, name)) for name in exact]
    most = 1.1 if autocast or how == "8 bits" else 2.7
    assert sum(a for a, _ in errors) <= most * sum(b for _, b in errors) + 1e-5
    assert max(a for a, _ in errors) <= 1.5 * most * max(b for _, b in errors) + 1e-5


def with_numbers(model: Any) -> Any:
    """Return a quantised model with its weights as float32 numbers, in plain layers."""
    for name, layer in list(model.named_modules()):
        if frozen_weight.kind(layer) in frozen_weight.KINDS:
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            plain.weight = nn.Parameter(frozen_weight.unpacked(layer).float(), requires_grad=False)
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, plain)
    for kept in ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        if hasattr(model, kept):
            setattr(model, kept, False)
    return model.float() if not getattr(model, "hf_quantizer", None) else model


def test_a_sum_in_short_walks_is_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmft_adapters.lora.linear._SUMMED", 4)
    monkeypatch.setattr("llmft_adapters.lora.linear._IN_A_CACHE", 0)
    a, b = torch.randn(11, 3), torch.randn(11, 3)
    torch.testing.assert_close(sum_over_rows(a, b), (a * b).sum(0))


@pytest.mark.parametrize("how", ["trained bias", "hook", "merged", "off"])
def test_where_a_layer_is_not_plain_peft_s_own_pass_is_taken(how: str) -> None:
    """Each of these would be lost in the fast pass."""
    outputs = []
    for model in both(tiny_llama):
        for layer in (m for m in model.modules() if hasattr(m, "lora_A")):
            if how == "trained bias":
                layer.base_layer.bias = nn.Parameter(torch.ones(layer.out_features))
            if how == "hook":
                layer.base_layer.register_forward_hook(lambda _, given, out: out + 1)
        if how == "merged":
            model.merge_adapter()
        if how == "off":
            model.disable_adapter_layers()
        outputs.append(measures.logits(model))
        if how == "trained bias":
            measures.gradients(model)
            bias = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.bias
            outputs[-1] = torch.cat([outputs[-1].flatten(), bias.grad])
    assert measures.same(outputs[1], outputs[0])


@pytest.mark.parametrize("shape", [(300, 900), (900, 300), (3, 7)])
@pytest.mark.parametrize("along", ["rows", "columns"])
def test_two_types_are_multiplied_as_in_the_wider_one(shape, along, monkeypatch):
    torch.manual_seed(0)
    some = torch.randn(shape).bfloat16()
    scale = torch.rand(shape[0], 1) if along == "columns" else torch.rand(shape[1])
    want = (some.float() * scale).bfloat16()
    for some_of in (some, torch.nn.Parameter(some, requires_grad=False)):
        found = linear.times(some_of, scale)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, want)
    monkeypatch.setattr(linear, "_walks", lambda _: False)
    assert torch.equal(linear.times(some, scale), want)


def test_a_sum_over_many_rows_of_16_bits_is_taken_in_float32():
    torch.manual_seed(0)
    a, b = torch.randn(2, 1000, 300).bfloat16()
    found, exact = sum_over_rows(a, b), (a.double() * b.double()).sum(0)
    assert found.dtype == torch.float32
    assert (found - exact).norm() / exact.norm() < 1e-6
