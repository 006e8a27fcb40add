"""Recipes that ask for a divided base where it cannot be divided: refused, with the place."""

from __future__ import annotations

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
"""


def refusal(tmp_path, adapter="lora", alignment="sft", data="triviaqa", model="") -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        RECIPE.format(adapter=adapter, alignment=alignment, data=data, model=model), "utf-8"
    )
    with pytest.raises(LlmftError) as raised:
        load_recipe(path, Registry.discover())
    return "\n".join(fault.what for fault in raised.value.faults)


def test_trained_weights_are_not_divided(tmp_path):
    told = refusal(tmp_path, adapter="full")
    assert "shard_base divides weights that are frozen, and 'full' trains them" in told


def test_8_bits_are_not_divided(tmp_path):
    eight = ", quantization: {load_in_8bit: true}"
    assert "shard_base cannot divide a base in 8 bits" in refusal(tmp_path, model=eight)


@pytest.mark.parametrize(
    "alignment", ["ppo, reward_model: r", "grpo, rewards: [{method: exact_match}]", "gkd"]
)
def test_methods_that_sample_in_each_process_are_refused(tmp_path, alignment):
    told = refusal(tmp_path, alignment=alignment, data="prompts")
    assert f"'{alignment.partition(',')[0]}' samples answers in each process for itself" in told


def test_what_can_be_divided_loads(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        RECIPE.format(adapter="qlora", alignment="sft", data="triviaqa", model=""), "utf-8"
    )
    job = load_recipe(path, Registry.discover())
    assert job.recipe.stages[0].train.shard_base
