"""Which layers `all-linear` and names mean, on mixtures too; near misses get the fix."""

from __future__ import annotations

import json
import time

import pytest
import torch
from llmft_adapters.dora import Dora
from llmft_adapters.lora import Lora, targets
from llmft_adapters.lora.config import LoraConfig
from pydantic import ValidationError
from transformers import AutoConfig, AutoModelForCausalLM

from llmft.modeling.tiny_models import tiny_llama

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
        ("lm_*", "mixtral", "write lm_head"),
        ("(q|v)_proj", "mixtral", "write it as a string"),
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


# --- a string is PEFT's regex, and what is excluded


@pytest.mark.parametrize("regex", [
    r".*\.(q|v)_proj", r"model\.layers\.[\d]+\.(mlp|self_attn)\.(up|down|gate|q|k|v|o)_proj",
    r".*layers\.1\..*proj",
])  # fmt: skip
def test_a_regex_adapts_what_peft_adapts(regex):
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    theirs = get_peft_model(tiny_llama(), PeftConfig(r=2, target_modules=regex))
    adapter = lora(target_modules=regex)
    assert not list(adapter.check(tiny_llama()))
    assert trained(adapter.attach(tiny_llama())) == trained(theirs)


@pytest.mark.parametrize("excluded", [["v_proj"], r".*layers\.0\..*", ["q_proj", "v_proj"]])
def test_what_is_excluded_is_what_peft_excludes(excluded):
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    wanted = ["q_proj", "v_proj", "up_proj"]
    config = PeftConfig(r=2, target_modules=wanted, exclude_modules=excluded)
    adapter = lora(target_modules=wanted, exclude_modules=excluded)
    assert not list(adapter.check(tiny_llama()))
    theirs = get_peft_model(tiny_llama(), config)
    assert trained(adapter.attach(tiny_llama())) == trained(theirs)


@pytest.mark.parametrize(("settings", "key", "fact"), [
    ({"target_modules": "q_proj"}, ("target_modules",), "no linear layer's whole name"),
    ({"target_modules": r".*layers\.1.*proj", "layers_to_transform": [0]}, ("target_modules",),
     "nothing in the layers of layers_to_transform"),
    ({"exclude_modules": ["q_proj", "lm_head"]}, ("exclude_modules", 1), "none of the layers"),
    ({"exclude_modules": "q_proj"}, ("exclude_modules",), "none of the layers"),
    ({"exclude_modules": ".*_proj"}, ("exclude_modules",), "excludes every layer"),
    ({"target_parameters": ["experts.down_proj"]}, ("target_parameters", 0), "no stacked weight"),
])  # fmt: skip
def test_a_choice_that_means_nothing_is_refused(settings, key, fact):
    (fault,) = lora(**settings).check(tiny_llama())
    assert fault[0] == key
    assert fact in fault[1]


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules"])
@pytest.mark.parametrize("regex", [r"(.*.*)*!", "(" + ".*" * 40 + ")!"], ids=["nested", "many"])
def test_s7_a_regex_made_to_hang_is_refused_in_seconds(key, regex, monkeypatch):
    monkeypatch.setattr(targets, "SECONDS", 0.2)
    targets._matched.cache_clear()
    began = time.process_time()
    (fault,) = lora(**{key: regex}).check(tiny_llama().to("meta"))
    assert time.process_time() - began < 2
    assert fault[0] == (key,)
    assert "takes longer than 0.2 s" in fault[1]


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules"])
@pytest.mark.parametrize("regex", ["(q_proj", "*_proj", "[" * 500])
def test_a_string_that_is_no_regex_is_refused(key, regex):
    with pytest.raises(ValidationError, match="a string is a regular expression"):
        lora(**{key: regex})


def test_experts_are_chosen_by_target_parameters():
    narrow = lora(target_modules=["q_proj"], target_parameters=["*.layers.1.*.down_proj"])
    wide = lora(target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"])
    for adapter, layers in ((narrow, {"1"}), (wide, {"0", "1"})):
        model = moe("qwen3_moe")
        assert not list(adapter.check(model))
        found = trained(adapter.attach(model))
        experts = {name for name in found if "experts" in name}
        assert {name.split("layers.")[1][0] for name in experts} == layers
        assert any("q_proj" in name for name in found)
    (fault,) = lora(target_parameters=["gate_proj"]).check(moe("mixtral"))
    assert fault[0] == ("target_parameters", 0)
    assert fault[2] == "its experts have down_proj, gate_up_proj"
    by_regex = lora(target_modules=".*q_proj").attach(moe("qwen3_moe"))
    assert not any("experts" in name for name in trained(by_regex))
