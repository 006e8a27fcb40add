"""What a plan counts is what the really attached model and the real loop have."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmft.api import Adapter, AdapterConfig, Field
from llmft.cli.commands.plan import as_text
from llmft.cli.commands.plan import plan as verdict_of
from llmft.modeling.counting import count_parameters
from llmft.planning.fake_tensors import tensors_of
from llmft.planning.memory_tracker import WEIGHTS
from llmft.planning.planned_stage import PlannedStage
from llmft.planning.planner import plan_recipe
from llmft.registry.registry import Registry
from llmft.training.step_plan import Plan

ADAPTERS = ["lora", "dora", "qlora", "prefix", "ptuning", "prompt", "full"]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ADAPTERS)
def test_parameters_are_those_of_the_attached_model(
    method, family, recipe, model_folders, stage_of
):
    recipe["model"]["path"] = str(model_folders[family])
    recipe["stages"][0]["adapter"] = {"method": method}
    fake = stage_of(recipe, PlannedStage)
    assert count_parameters(fake.models.model) == count_parameters(stage_of(recipe).models.model)
    assert all(t.device.type in ("cpu", "meta") for t in tensors_of(fake.models.model))


@pytest.mark.parametrize("quantization", [{"load_in_4bit": True}, {"load_in_8bit": True}])
@pytest.mark.parametrize("method", ["lora", "dora", "prompt"])
def test_parameters_and_bytes_are_right_for_a_quantised_base(
    method, quantization, recipe, stage_of
):
    recipe["model"]["quantization"] = quantization
    recipe["stages"][0]["adapter"] = {"method": method}
    fake, real = stage_of(recipe, PlannedStage), stage_of(recipe)
    assert count_parameters(fake.models.model) == count_parameters(real.models.model)
    assert bytes_of(fake.models.model) == bytes_of(real.models.model)


def bytes_of(model: Any) -> int:
    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors_of(model)}
    return sum(storage.nbytes() for storage in storages.values())


def test_rows_and_steps_are_those_of_the_loop(recipe, loaded, registry, stage_of):
    recipe["stages"][0]["train"]["gradient_accumulation_steps"] = 3
    plan = plan_recipe(loaded(recipe)).stages[0]
    real = stage_of(recipe)
    encoded = real.data.encode(real.data.rows())
    assert plan.counts.steps == Plan.of(len(encoded), real.train, real.seed).steps
    assert plan.counts.rows == len(encoded)
    assert plan.counts.tokens == sum(len(row.input_ids) for row in encoded)
    assert plan.counts.trained_tokens == sum(row.n_labels for row in encoded)


def test_packing_counts_bins_as_items(recipe, loaded, registry):
    recipe["stages"][0]["train"] |= {"packing": True, "max_length": 200}
    plan = plan_recipe(loaded(recipe)).stages[0]
    assert plan.counts.rows == 40
    assert plan.counts.items < 40


class Table(torch.nn.Module):
    """A base with a table of its own, whose size it asks of a number in a tensor."""

    def __init__(self, base: Any, size: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.table = torch.nn.Parameter(torch.randn(size, base.config.hidden_size))
        self.largest = float(self.table.abs().max())

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        text = self.base.get_input_embeddings()(input_ids) + self.table.mean(0)
        return self.base(inputs_embeds=text, **inputs)


class Strange(Adapter[Any]):
    """An adapter that PEFT knows nothing of."""

    method = "lora"  # the place it takes in the recipe of a test

    class Config(AdapterConfig):
        r: int = Field(7, ge=1, description="rows of the table")

    def attach(self, model: Any) -> Any:
        return Table(model, self.config.r)

    def save(self, model, folder):
        raise AssertionError("a plan saves nothing")

    load = disabled = save


class Refusing(Strange):
    """One that cannot work without weights."""

    def attach(self, model: Any) -> Any:
        raise RuntimeError("needs numbers")


def test_a_third_partys_adapter_is_counted_on_meta(recipe, loaded, registry, monkeypatch):
    stands_for_lora(monkeypatch, Strange)
    plan = plan_recipe(loaded(recipe)).stages[0]
    assert plan.trainable_parameters == 4 * 32
    assert [peak.phase for peak in plan.peaks] == ["load", "prepare", "train", "save"]
    assert not plan.remarks


def test_an_adapter_that_cannot_attach_without_weights_is_told(
    recipe, loaded, registry, monkeypatch
):
    stands_for_lora(monkeypatch, Refusing)
    plan = plan_recipe(loaded(recipe)).stages[0]
    assert "cannot be attached without weights (RuntimeError: needs numbers)" in plan.remarks[0]
    assert plan.total_parameters > 0
    verdict = verdict_of(loaded(recipe).source.path, [], None)
    assert verdict.fits is None
    assert "not all of only is counted; what is counted fits: " in as_text(verdict)


def stands_for_lora(monkeypatch: Any, adapter: type[Adapter[Any]]) -> None:
    original = Registry.method

    def method(self: Registry, kind: Any, name: str) -> type[Any]:
        return adapter if (kind, name) == ("adapter", "lora") else original(self, kind, name)

    monkeypatch.setattr(Registry, "method", method)


@pytest.mark.extended
def test_evaluations_during_training_are_counted_in_number_memory_and_files(
    recipe, loaded, registry
):
    stage = recipe["stages"][0]
    stage["evaluate"] = {"metrics": ["loss", "f1"], "holdout": 0.2}
    assert plan_recipe(loaded(recipe)).stages[0].evaluations is None
    before = {path for path, _ in plan_recipe(loaded(recipe)).stages[0].files}
    stage["evaluate"] |= {
        "eval_strategy": "steps", "eval_steps": 5, "generate_every": 2,
        "load_best_model_at_end": True,
    }  # fmt: skip
    planned = plan_recipe(loaded(recipe)).stages[0]
    found = planned.evaluations
    # 32 rows, 8 steps an epoch, 16 in all: after 5, 10, 15 and the last
    assert (found.times, found.rows, found.with_answers) == (4, 8, 2)
    assert {path for path, _ in planned.files} - before == {"stages/only/checkpoints, 2 kept"}
    peaks = {peak.phase: peak.by_kind for peak in planned.peaks}
    assert "optimiser" not in peaks["evaluate"]
    assert peaks["evaluate in training"]["optimiser"] == peaks["train"]["optimiser"]
    assert peaks["generate in training"]["KV cache"] == peaks["generate"]["KV cache"]
    del stage["evaluate"]["generate_every"]
    phases = {peak.phase for peak in plan_recipe(loaded(recipe)).stages[0].peaks}
    assert "generate in training" not in phases


def test_a_whole_base_is_in_memory_also_where_few_tokens_are_read(recipe, loaded, tmp_path):
    """Its numbers are read when it is loaded, to see that they are finite."""
    config = AutoConfig.from_pretrained(recipe["model"]["path"])
    config.vocab_size, config.tie_word_embeddings = 60_000, False
    model = AutoModelForCausalLM.from_config(config)
    folder = shutil.copytree(recipe["model"]["path"], tmp_path / "wide")
    model.save_pretrained(folder)
    recipe["model"]["path"] = str(folder)
    train = next(p for p in plan_recipe(loaded(recipe)).stages[0].peaks if p.phase == "train")
    assert train.by_kind[WEIGHTS] >= sum(p.numel() for p in model.parameters()) * 4
