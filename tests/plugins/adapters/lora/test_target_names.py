"""Which layers `all-linear` and names mean, on mixtures too; near misses get the fix."""

from __future__ import annotations

import json

import pytest
import torch
from llmft_adapters.dora import Dora
from llmft_adapters.lora import Lora
from llmft_adapters.lora.config import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MOE = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2,
                  "shared_expert_intermediate_size": 16},
}  # fmt: skip


def moe(kind):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES, **MOE[kind])
    return AutoModelForCausalLM.from_config(config).float().requires_grad_(False)


def lora(**settings):
    return Lora(LoraConfig(method="lora", r=2, **settings))


def trained(model):
    return {n for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", MOE)
def test_all_linear_means_the_same_with_and_without_layers(kind):
    whole = trained(lora().attach(moe(kind)))
    by_number = trained(lora(layers_to_transform=[0, 1]).attach(moe(kind)))
    first = trained(lora(layers_to_transform=[0]).attach(moe(kind)))
    assert whole == by_number
    assert any("experts" in name for name in first)
    assert first == {name for name in whole if ".layers.0." in name}
    assert not any(".gate." in name or "shared_expert_gate" in name for name in whole)


@pytest.mark.parametrize("kind", MOE)
def test_an_adapter_of_experts_loads_in_plain_peft(kind, tmp_path):
    from peft import PeftModel

    adapter = lora(lora_alpha=32)
    model = adapter.attach(moe(kind))
    with torch.no_grad():
        for name in trained(model):
            model.get_parameter(name).normal_(0, 0.1)
    adapter.save(model, tmp_path)
    ids = torch.tensor([[5, 9, 4, 7, 3]])
    want = model.eval()(input_ids=ids).logits
    plain = PeftModel.from_pretrained(moe(kind), tmp_path).eval()
    torch.testing.assert_close(plain(input_ids=ids).logits, want)
    again = adapter.load(moe(kind), tmp_path).eval()
    torch.testing.assert_close(again(input_ids=ids).logits, want)
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    assert told["target_modules"] == sorted(told["target_modules"])
    assert told["target_parameters"] == sorted(told["target_parameters"])


@pytest.mark.parametrize(
    "adapter",
    [
        lora(lora_dropout=0.1),
        lora(init_lora_weights="pissa"),
        Dora(Dora.Config(method="dora", r=2)),
    ],
)
def test_what_fused_experts_cannot_have_is_refused_before_loading(adapter):
    with torch.device("meta"):
        model = moe("mixtral")
    said = [what for _, what, _ in adapter.check(model)]
    assert any("fused experts" in what for what in said)
    named = adapter.config.model_copy(update={"target_modules": ["q_proj", "v_proj"]})
    assert not list(type(adapter)(named).check(model))


@pytest.mark.parametrize(
    ("pattern", "kind", "fix"),
    [
        ("lm_head", "mixtral", "modules_to_save"),
        ("(q|v)_proj", "mixtral", "globs"),
        (r".*\.q_proj", "mixtral", "globs"),
        ("w1", "mixtral", "gate_up_proj"),
        ("q_prjo", "mixtral", "all-linear"),
    ],
)
def test_near_misses_get_the_fix(pattern, kind, fix):
    with torch.device("meta"):
        model = moe(kind)
    (refusal,) = lora(target_modules=[pattern]).check(model)
    assert fix in refusal[2]


def test_an_expert_s_weight_may_be_named():
    found = trained(lora(target_modules=["down_proj", "q_proj"]).attach(moe("qwen3_moe")))
    assert any("experts" in name for name in found)


@pytest.mark.parametrize("method", ["prompt", "ptuning", "prefix"])
def test_soft_prompts_are_refused_where_every_layer_looks_ids_up(method):
    from llmft.registry.registry import Registry

    cls = Registry.discover().method("adapter", method)
    with torch.device("meta"):
        model = moe("mixtral")
    model.config.hidden_size_per_layer_input = 16
    model.config.num_kv_shared_layers = 1
    refusals = list(cls(cls.Config(method=method, num_virtual_tokens=3)).check(model))
    assert any(key == ("method",) and fix in ("pick lora", "use lora") for key, _, fix in refusals)
