"""Recipes that ask for a divided base where it cannot be divided: refused, with the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmft.api.errors import LlmftError
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry

RECIPE = """\
recipe: 1
name: t
model: {{path: "embedded:model"{model}}}
stages:
  - name: s
    adapter: {{method: {adapter}}}
    alignment: {{method: {alignment}}}
    data: {{method: {data}, path: "embedded:trivia"}}
    train: {{shard_base: true, max_steps: 1}}
{more}
"""


def written(tmp_path, adapter="lora", alignment="sft", data="triviaqa", model="", more="") -> Path:
    path = tmp_path / "recipe.yaml"
    text = RECIPE.format(adapter=adapter, alignment=alignment, data=data, model=model, more=more)
    path.write_text(text, "utf-8")
    return path


def refusal(tmp_path, **asked: str) -> str:
    with pytest.raises(LlmftError) as raised:
        load_recipe(written(tmp_path, **asked), Registry.discover())
    return "\n".join(fault.what for fault in raised.value.faults)


def test_an_average_of_weights_is_not_divided(tmp_path):
    ema = "    plugins: [{method: ema}]"
    assert "'ema' keeps weights" in refusal(tmp_path, adapter="full", more=ema)
    load_recipe(written(tmp_path, adapter="lora", more=ema), Registry.discover())


def test_8_bits_are_not_divided(tmp_path):
    eight = ", quantization: {load_in_8bit: true}"
    assert "shard_base cannot divide a base in 8 bits" in refusal(tmp_path, model=eight)


@pytest.mark.parametrize(
    "alignment", ["ppo, reward_model: r", "grpo, rewards: [{method: exact_match}]", "gkd"]
)
def test_methods_that_sample_in_each_process_are_refused(tmp_path, alignment):
    told = refusal(tmp_path, alignment=alignment, data="prompts")
    assert f"'{alignment.partition(',')[0]}' samples answers in each process for itself" in told


@pytest.mark.parametrize("adapter", ["qlora", "full"])
def test_what_can_be_divided_loads(tmp_path, adapter):
    job = load_recipe(written(tmp_path, adapter=adapter), Registry.discover())
    assert job.recipe.stages[0].train.shard_base


def test_a_model_without_known_layers_is_refused_before_it_is_loaded(tmp_path, monkeypatch):
    from transformers import LlamaPreTrainedModel

    from llmft.engine.preflight import preflight
    from llmft.modeling.base_model import BaseModel

    monkeypatch.setattr(LlamaPreTrainedModel, "_no_split_modules", [])
    job = load_recipe(written(tmp_path), Registry.discover())
    (fault,) = preflight(job, BaseModel(job.recipe.model))
    assert (fault.code, fault.path) == ("E233", "stages[0].train.shard_base")
