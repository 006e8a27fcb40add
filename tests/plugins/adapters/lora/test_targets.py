"""LoRA and QLoRA: which layers they take, what they refuse, and what is stored in 4 bits."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from llmft_adapters.lora import Lora
from llmft_adapters.lora.targets import adapted_layers
from llmft_adapters.qlora import QLora
from pydantic import ValidationError

from llmft.modeling.counting import count_parameters
from llmft.testing import measures, tiny_gpt2, tiny_llama
from tests.plugins.adapters.conftest import quantised


def lora(**settings: Any) -> Lora:
    return Lora(Lora.Config(method="lora", **settings))


def qlora(**settings: Any) -> QLora:
    return QLora(QLora.Config(method="qlora", **settings))


def test_it_starts_as_the_base_because_b_is_zero() -> None:
    measures.seed()
    model = lora().attach(tiny_llama())
    assert measures.same(measures.logits(model), measures.logits(tiny_llama()))


def test_trainable_parameters_are_the_paper_s_count() -> None:
    model = lora(r=4, target_modules=["q_proj", "v_proj"]).attach(tiny_llama())
    # r (in + out) for each layer's q (32 -> 32) and v (32 -> 16)
    assert count_parameters(model)[0] == 2 * 4 * ((32 + 32) + (32 + 16))


@pytest.mark.parametrize(("settings", "key", "fact"), [
    ({"target_modules": ["query_key_value"]}, ("target_modules", 0), "matches no linear layer"),
    ({"target_modules": ["q_proj", "x*"]}, ("target_modules", 1), "matches no linear layer"),
    ({"layers_to_transform": [0, 7]}, ("layers_to_transform", 1), "no layer 7"),
    ({"rank_pattern": {"nothing": 4}}, ("rank_pattern", "nothing"), "no layer that is adapted"),
    ({"alpha_pattern": {"(": 4.0}}, ("alpha_pattern", "("), "no layer that is adapted"),
    ({"rank_pattern": {r".*\.q_proj": 4}}, ("rank_pattern", r".*\.q_proj"),
     "no layer that is adapted"),
    ({"rank_pattern": {"*_proj": 4, "q_proj": 2}}, ("rank_pattern", "q_proj"),
     "changes nothing: '*_proj' above it"),
    ({"target_modules": ["q_proj"], "rank_pattern": {"v_proj": 4}}, ("rank_pattern", "v_proj"),
     "no layer that is adapted"),
    ({"modules_to_save": ["score"]}, ("modules_to_save", 0), "no layer of this model"),
    ({"modules_to_save": ["q_proj"]}, ("modules_to_save", 0), "adapted already"),
    ({"modules_to_save": ["mlp"]}, ("modules_to_save", 0), "gate_proj' is adapted already"),
    ({"modules_to_save": ["layers"], "target_modules": ["q_proj"]}, ("modules_to_save", 0),
     "q_proj' is adapted already"),
    ({"modules_to_save": ["act_fn"]}, ("modules_to_save", 0), "no weights to train"),
    ({"target_modules": ["q_proj", "*.layers.0.*"], "layers_to_transform": [1]},
     ("target_modules", 1), "matches nothing in the layers of layers_to_transform"),
    ({"init_lora_weights": "orthogonal", "r": 7}, ("init_lora_weights",), "has 7"),
    ({"init_lora_weights": "orthogonal", "rank_pattern": {"v_proj": 3}}, ("init_lora_weights",),
     "v_proj' has 3"),
])  # fmt: skip
def test_s7_what_fits_no_layer_is_refused(settings: Any, key: Any, fact: str) -> None:
    (fault,) = lora(**settings).check(tiny_llama().to("meta"))
    assert fault[0] == key
    assert fact in fault[1]


@pytest.mark.parametrize("wanted", ["v_proj", "mlp"])
def test_a_layer_in_4_or_8_bits_is_not_trained_whole(wanted: str) -> None:
    adapter = lora(target_modules=["q_proj"], modules_to_save=[wanted])
    base = tiny_llama().to("meta")
    assert not list(adapter.check(base))
    base.is_quantized = True
    (fault,) = adapter.check(base)
    assert fault[0] == ("modules_to_save", 0)
    assert "stored in 4 or 8 bits" in fault[1]


def test_a_layer_trained_whole_is_the_one_of_that_name_only(tmp_path: Path) -> None:
    from peft import PeftModel

    adapter = lora(r=2, target_modules=["q_proj"], modules_to_save=["norm", "norm"])
    model = adapter.attach(tiny_llama())
    whole = [name for name in measures.learnt(model) if "lora_" not in name]
    assert whole == ["base_model.model.model.norm.modules_to_save.default.weight"]
    measures.train(model, steps=2, learning_rate=1e-2)
    folder = measures.saved(adapter, model, tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), folder).eval()
    assert measures.distance(measures.logits(loaded), measures.logits(model)) <= 1e-6


def test_no_layer_is_no_choice() -> None:
    with pytest.raises(ValidationError, match="it is empty"):
        lora(target_modules=[])


def test_a_tied_embedding_is_not_torn_off() -> None:
    (fault,) = lora(modules_to_save=["lm_head"]).check(tiny_gpt2())
    assert "shares its weights" in fault[1]


def test_the_chosen_layers_are_the_adapted_ones() -> None:
    settings = {"target_modules": ["*_proj"], "layers_to_transform": [1]}
    adapter = lora(**settings, rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 6.0})
    assert not list(adapter.check(tiny_llama()))
    model = adapter.attach(tiny_llama())
    adapted = [n for n, m in model.get_base_model().named_modules() if hasattr(m, "lora_A")]
    assert adapted == adapted_layers(tiny_llama(), adapter.config)
    assert len(adapted) == 7
    assert all(name.startswith("model.layers.1.") for name in adapted)
    layer = model.get_base_model().model.layers[1].self_attn.q_proj
    assert (layer.r["default"], layer.scaling["default"]) == (2, 3.0)


def test_a_rank_by_glob_reaches_peft_as_full_names() -> None:
    patterns = {"*.layers.1.*.q_proj": 2, "q_proj": 4, "[kv]_proj": 6}
    adapter = lora(rank_pattern=patterns, target_modules=["q_proj", "v_proj"])
    assert not list(adapter.check(tiny_llama()))
    assert adapter.peft_config(tiny_llama()).rank_pattern == {
        "model.layers.1.self_attn.q_proj": 2,
        "model.layers.0.self_attn.q_proj": 4,
        "model.layers.0.self_attn.v_proj": 6,
        "model.layers.1.self_attn.v_proj": 6,
    }
    measures.seed()
    model = adapter.attach(tiny_llama()).get_base_model()
    ranks = [layer.self_attn.q_proj.r["default"] for layer in model.model.layers]
    assert ranks == [4, 2]


# Each takes a backtracking regex engine longer than anybody waits.
@pytest.mark.parametrize("pattern", [
    r"((.*)*)*!", r"(\w+\.?)+!", "(" + ".*" * 40 + ")!", "*o" * 800 + "!", "[" * 500 + "*!",
], ids=lambda pattern: pattern[:8])  # fmt: skip
@pytest.mark.parametrize(
    "key", ["target_modules", "rank_pattern", "alpha_pattern", "modules_to_save"]
)
def test_a_pattern_made_to_hang_a_regex_is_refused_at_once(key: str, pattern: str) -> None:
    asked: Any = {pattern: 4} if key.endswith("pattern") else [pattern]
    began = time.process_time()
    (fault,) = lora(**{key: asked}).check(tiny_llama().to("meta"))
    assert time.process_time() - began < 5
    assert fault[0][0] == key
    assert pattern in fault[1]


@pytest.mark.parametrize("start", ["eva", "corda", "lora_ga", "loftq"])
def test_a_start_that_reads_data_or_rounds_the_base_is_refused(start: str) -> None:
    with pytest.raises(ValidationError, match="write pissa, olora"):
        lora(init_lora_weights=start)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_are_peft_s_and_the_base_keeps_its_own(bias: str, tmp_path: Path) -> None:
    from peft import PeftModel, get_peft_model

    adapter = lora(r=2, bias=bias, target_modules=["c_attn"])
    base = tiny_gpt2()
    own = {name: p for name, p in base.named_parameters() if name.endswith("bias")}
    measures.seed()
    model = adapter.attach(base)
    measures.seed()
    theirs = get_peft_model(tiny_gpt2(), adapter.peft_config(tiny_gpt2()))
    assert measures.learnt(model).keys() == measures.learnt(theirs).keys()
    measures.train(model, steps=3, learning_rate=1e-2)
    fresh = dict(tiny_gpt2().named_parameters())
    assert all(measures.same(p, fresh[name]) for name, p in own.items())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with adapter.disabled(model):
            assert measures.same(measures.logits(model), measures.logits(tiny_gpt2()))
    folder = measures.saved(adapter, model, tmp_path)
    loaded = PeftModel.from_pretrained(tiny_gpt2(), folder).eval()
    assert measures.distance(measures.logits(loaded), measures.logits(model)) <= 1e-6


def test_lora_plus_gives_b_its_own_rate() -> None:
    from llmft.api.train_settings import TrainSettings

    adapter = lora(loraplus_lr_ratio=16.0)
    model = adapter.attach(tiny_llama())
    groups = adapter.parameter_groups(model, TrainSettings(learning_rate=1e-3))
    assert groups is not None
    assert "lr" not in groups[0]
    assert groups[1]["lr"] == pytest.approx(1.6e-2)
    assert sum(len(group["params"]) for group in groups) == len(measures.learnt(model))


def test_qlora_asks_for_nf4_and_its_settings_win() -> None:
    assert qlora().load_options() == {
        "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
    }  # fmt: skip
    assert qlora(bnb_4bit_quant_type="fp4").load_options()["bnb_4bit_quant_type"] == "fp4"
    with pytest.raises(ValidationError):
        qlora(load_in_4bit=False)


def test_qlora_s_base_really_is_in_4_bits_and_nothing_else_is_cast(tmp_path: Path) -> None:
    adapter = qlora(r=2)
    plain = tiny_llama()
    base = quantised(tiny_llama(), tmp_path / "base", **adapter.load_options())
    linear = [m for m in base.modules() if type(m).__name__ == "Linear4bit"]
    numbers = sum(m.in_features * m.out_features for m in linear)
    held = sum(m.weight.numel() * m.weight.element_size() for m in linear)
    assert numbers == sum(p.numel() for n, p in plain.named_parameters() if "_proj" in n)
    assert held == numbers // 2
    dtypes = {name: p.dtype for name, p in base.named_parameters()}
    model = adapter.attach(base)
    after = {n.removeprefix("base_model.model.").replace(".base_layer", ""): p.dtype
             for n, p in model.named_parameters() if "lora_" not in n}  # fmt: skip
    assert after == dtypes
    assert {p.dtype for p in measures.learnt(model).values()} == {torch.float32}
    trainable, total = count_parameters(model)
    assert total - trainable == sum(p.numel() for p in plain.parameters())


def test_merging_into_a_quantised_base_is_refused_with_the_reason(tmp_path: Path) -> None:
    four = qlora(r=2)
    model = four.attach(quantised(tiny_llama(), tmp_path / "four", **four.load_options()))
    with pytest.raises(NotImplementedError, match="4-bit base"):
        four.merge(model)
    adapter = lora(r=2)
    model = adapter.attach(quantised(tiny_llama(), tmp_path / "base", load_in_8bit=True))
    with pytest.raises(NotImplementedError, match="quantised"):
        adapter.merge(model)


def test_the_layers_are_written_in_an_order_that_no_process_changes(tmp_path: Path) -> None:
    names = ["v_proj", "q_proj", "up_proj", "down_proj", "o_proj"]
    method = lora(r=2, target_modules=names)
    method.save(method.attach(tiny_llama()), tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["target_modules"] == sorted(names)
