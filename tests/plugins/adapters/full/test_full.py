"""Which weights are trained, how they are saved and loaded, and shortcuts that need frozen ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from llmft_adapters.full import Full
from transformers import AutoConfig, AutoModelForCausalLM

from llmft.api.model_settings import ModelSource
from llmft.engine import adapter_trial
from llmft.modeling import forward, levers
from llmft.modeling.tiny_models import tiny_gpt2, tiny_llama
from llmft.testing import measures
from llmft.testing.tiny_architectures import ARCHITECTURES, tiny

EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}


def full(**config: Any) -> Full:
    return Full(Full.Config(method="full", **config))


def made(architecture: str) -> Any:
    if architecture not in EXPERTS:
        return tiny(architecture)
    config = AutoConfig.for_model(architecture, **ARCHITECTURES["llama"], **EXPERTS[architecture])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).float().eval()


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *EXPERTS])
def test_what_is_saved_loads_exactly_here_and_in_plain_transformers(
    architecture: str, tmp_path: Path
) -> None:
    adapter = full()
    model = adapter.attach(made(architecture))
    measures.nudge(model)
    expected = measures.logits(model)
    folder = measures.saved(adapter, model, tmp_path)
    assert measures.same(measures.logits(adapter.load(made(architecture), folder)), expected)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert measures.same(measures.logits(plain), expected)


def test_a_tied_output_layer_goes_by_both_its_names() -> None:
    for config in ({"trainable_parameters": ["lm_head"]}, {"trainable_parameters": ["wte"]}):
        model = full(**config).attach(tiny_gpt2())
        assert [n for n, p in model.named_parameters() if p.requires_grad] == [
            "transformer.wte.weight"
        ]
    model = full(freeze_parameters=["lm_head"]).attach(tiny_gpt2())
    assert not model.transformer.wte.weight.requires_grad


@pytest.mark.parametrize(("config", "key", "words"), [
    ({"trainable_parameters": ["q_prj"]}, ("trainable_parameters", 0), "did you mean 'q_proj'?"),
    ({"freeze_parameters": ["layers.7"]}, ("freeze_parameters", 0), "did you mean 'layers'"),
    ({"freeze_trainable_layers": 3}, ("freeze_trainable_layers",), "write at most 2"),
    ({"freeze_parameters": ["model", "lm_head"]}, ("freeze_parameters",), "freeze less"),
    ({"pure_bf16": True}, ("pure_bf16",), "write model.dtype: bfloat16"),
])  # fmt: skip
def test_what_fits_no_weight_is_refused(config: Any, key: Any, words: str) -> None:
    ((found, what, fix),) = full(**config).check(tiny_llama().to("meta"))
    assert found == key
    assert what
    assert words in fix


def test_a_published_generation_config_that_transformers_does_not_write_is_mended(
    tmp_path: Path,
) -> None:
    model = full().attach(tiny_llama())
    model.generation_config.temperature = 0.6
    folder = measures.saved(full(), model, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(folder).generation_config
    assert (again.temperature, again.do_sample) == (0.6, True)
    assert not model.generation_config.do_sample


def test_the_trial_sees_a_shortcut_that_needs_frozen_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLMFT_CACHE", "off")
    config, source = tiny_llama().config, ModelSource(path="x")
    assert adapter_trial.failure(full(), source, config) == ""
    levers._known.clear()
    monkeypatch.setattr(forward, "is_frozen", lambda head: True)
    assert "gradient of a weight" in adapter_trial.failure(full(), source, config)
    levers._known.clear()
