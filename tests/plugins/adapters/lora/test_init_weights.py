"""PiSSA and OLoRA: PEFT's numbers, with the base kept as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from llmft_adapters.dora import Dora
from llmft_adapters.lora import Lora
from llmft_adapters.qlora import QLora
from peft import PeftModel, get_peft_model
from pydantic import ValidationError

from llmft.testing import measures, tiny_gpt2, tiny_llama
from tests.plugins.adapters.conftest import quantised

STARTS = ["pissa", "pissa_niter_8", "olora"]


def lora(start: str, **settings: Any) -> Lora:
    return Lora(Lora.Config(method="lora", r=4, init_lora_weights=start, **settings))


def theirs(adapter: Lora, start: str, base: Any) -> Any:
    config = adapter.peft_config(base)
    config.init_lora_weights = start
    measures.seed()
    return get_peft_model(base, config)


def ours(adapter: Lora, base: Any) -> Any:
    measures.seed()
    return adapter.attach(base)


# PEFT's olora does not turn GPT-2's weights, and fails.
@pytest.mark.parametrize(("start", "make"), [
    ("pissa", tiny_llama), ("pissa", tiny_gpt2), ("olora", tiny_llama),
])  # fmt: skip
def test_it_learns_what_peft_s_learns(start: str, make: Any) -> None:
    adapter = lora(start, use_rslora=True)
    models = [ours(adapter, make()), theirs(adapter, start, make())]
    for model in models:
        assert measures.distance(measures.logits(make()), measures.logits(model)) <= 1e-5
        measures.train(model, steps=4, learning_rate=1e-3)
    assert measures.distance(*(measures.logits(model) for model in models)) <= 1e-4
    mine, its = (measures.gradients(model) for model in models)
    for name in mine:
        assert measures.distance(its[name], mine[name]) <= 1e-4, name


@pytest.mark.parametrize("start", STARTS)
def test_a_and_b_start_within_the_base_and_change_nothing(start: str) -> None:
    model = ours(lora(start), tiny_llama())
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    weight = layer.base_layer.weight
    left = (weight - layer.scaling["default"] * B @ A).detach()
    if start == "olora":
        assert measures.distance((B.T @ B).detach(), torch.eye(4)) <= 1e-5
    else:
        tail = torch.linalg.svdvals(weight)[4:].square().sum().sqrt()
        assert float(left.norm()) == pytest.approx(float(tail), rel=1e-2)
    assert measures.same(measures.logits(model), measures.logits(tiny_llama()))


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_plain_peft_loads_what_is_saved_onto_the_plain_base(make: Any, tmp_path: Path) -> None:
    name = "q_proj" if make is tiny_llama else "c_attn"
    adapter = lora("pissa", use_rslora=True, rank_pattern={name: 2}, alpha_pattern={name: 6.0})
    model = ours(adapter, make())
    measures.train(model, steps=3, learning_rate=1e-2)
    folder = measures.saved(adapter, model, tmp_path)
    loaded = PeftModel.from_pretrained(make(), folder).eval()
    assert measures.distance(measures.logits(loaded), measures.logits(model)) <= 1e-5


@pytest.mark.parametrize("options", [
    {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"},
    {"load_in_8bit": True},
], ids=["4bit", "8bit"])  # fmt: skip
def test_on_a_quantised_base_it_starts_from_the_weights_as_stored(
    options: dict[str, Any], tmp_path: Path
) -> None:
    base, fresh = (quantised(tiny_llama(), tmp_path / name, **options) for name in ("a", "b"))
    plain = measures.logits(fresh)
    config = QLora.Config(method="qlora", r=4, init_lora_weights="pissa")
    adapter = QLora(config) if "load_in_4bit" in options else lora("pissa")
    model = ours(adapter, base)
    assert measures.distance(measures.logits(model), plain) <= 1e-5
    before = measures.loss(model)
    measures.train(model, steps=6, learning_rate=1e-2)
    assert measures.loss(model) < before
    with adapter.disabled(model):
        assert measures.same(measures.logits(model), plain)
    again = adapter.load(fresh, measures.saved(adapter, model, tmp_path))
    assert measures.distance(measures.logits(again), measures.logits(model)) <= 1e-5


def test_a_rank_above_the_weight_s_own_is_refused() -> None:
    adapter = lora("pissa", rank_pattern={"v_proj": 17})
    (fault,) = adapter.check(tiny_llama().to("meta"))
    assert fault[0] == ("init_lora_weights",)
    assert "has 16, not 17" in fault[1]


def test_dora_refuses_it() -> None:
    with pytest.raises(ValidationError, match="use method lora"):
        Dora.Config(method="dora", init_lora_weights="pissa")
