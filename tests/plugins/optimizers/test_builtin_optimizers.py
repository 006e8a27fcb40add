"""The builtin optimisers pass the public kit."""

from __future__ import annotations

import json
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from llmft_optimizers import of_torch
from llmft_optimizers.adafactor import Adafactor
from llmft_optimizers.of_bitsandbytes import (
    Adamw8bit,
    Lion8bit,
    Lion32bit,
    PagedAdamw8bit,
    PagedAdamw32bit,
    PagedLion8bit,
    PagedLion32bit,
)
from llmft_optimizers.of_schedulefree import ScheduleFreeAdamw, ScheduleFreeSgd
from llmft_optimizers.of_torchao import AdamwTorch4bit, AdamwTorch8bit
from pydantic import ValidationError

from llmft.api import TrainSettings
from llmft.cli.main import main
from llmft.testing import OptimizerContract


class TestAdamwTorch(OptimizerContract):
    method_class = of_torch.AdamwTorch


class TestAdamwTorchFused(OptimizerContract):
    method_class = of_torch.AdamwTorchFused


class TestSgd(OptimizerContract):
    method_class = of_torch.Sgd
    configs = [{}, {"momentum": 0.9}]
    learning_rate = 3.0


class TestAdagrad(OptimizerContract):
    method_class = of_torch.Adagrad
    learning_rate = 0.1


class TestRmsprop(OptimizerContract):
    method_class = of_torch.Rmsprop


class TestMuon(OptimizerContract):
    method_class = of_torch.Muon
    configs = [{}, {"momentum": 0.5}]


class TestAdafactor(OptimizerContract):
    method_class = Adafactor


class TestAdamw8bit(OptimizerContract):
    method_class = Adamw8bit


class TestAdamw8bitOfLargeTensors(OptimizerContract):
    method_class = Adamw8bit
    width = 64


class TestPagedAdamw8bit(OptimizerContract):
    method_class = PagedAdamw8bit


class TestPagedAdamw8bitOfLargeTensors(OptimizerContract):
    method_class = PagedAdamw8bit
    width = 64


class TestPagedAdamw32bit(OptimizerContract):
    method_class = PagedAdamw32bit


class TestLion32bit(OptimizerContract):
    method_class = Lion32bit


class TestLion8bit(OptimizerContract):
    method_class = Lion8bit


class TestLion8bitOfLargeTensors(OptimizerContract):
    method_class = Lion8bit
    width = 64


class TestPagedLion32bit(OptimizerContract):
    method_class = PagedLion32bit


class TestPagedLion8bit(OptimizerContract):
    method_class = PagedLion8bit


@pytest.mark.skipif(not find_spec("torchao"), reason="torchao is not installed")
class TestAdamwTorch8bit(OptimizerContract):
    method_class = AdamwTorch8bit
    width = 64


@pytest.mark.skipif(not find_spec("torchao"), reason="torchao is not installed")
class TestAdamwTorch4bit(OptimizerContract):
    method_class = AdamwTorch4bit
    width = 64


@pytest.mark.skipif(not find_spec("schedulefree"), reason="schedulefree is not installed")
class TestScheduleFreeAdamw(OptimizerContract):
    method_class = ScheduleFreeAdamw
    configs = [{}, {"r": 1.0, "weight_lr_power": 1.0}]
    learning_rate = 3e-2


@pytest.mark.skipif(not find_spec("schedulefree"), reason="schedulefree is not installed")
class TestScheduleFreeSgd(OptimizerContract):
    method_class = ScheduleFreeSgd
    configs = [{}, {"momentum": 0.8}]
    learning_rate = 6.0


@pytest.mark.skipif(not find_spec("schedulefree"), reason="schedulefree is not installed")
def test_plan_counts_a_schedule_free_optimiser(model_folder, tmp_path, capsys):
    rows, recipe = tmp_path / "rows.jsonl", tmp_path / "recipe.yaml"
    rows.write_text(8 * '{"prompt": "say it", "completion": " it"}\n')
    recipe.write_text(json.dumps({
        "recipe": 1, "name": "r", "model": {"path": str(model_folder)},
        "stages": [{
            "name": "s", "adapter": {"method": "lora"}, "alignment": {"method": "sft"},
            "data": {"method": "jsonl", "path": str(rows)},
            "train": {"optim": "schedule_free_adamw"},
        }],
    }))  # fmt: skip
    asked = ["plan", str(recipe), "--set"]
    assert main([*asked, "stages[0].train.lr_scheduler_type=constant"]) == 0
    assert "optimiser" in capsys.readouterr().out


@pytest.mark.skipif(not find_spec("schedulefree"), reason="schedulefree is not installed")
@pytest.mark.parametrize(("schedule", "code"), [
    ({}, 2), ({"lr_scheduler_type": "cosine"}, 2), ({"lr_scheduler_type": {"method": "linear"}}, 0),
    ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2}, 0),
])  # fmt: skip
def test_an_average_of_steps_is_of_one_rate_unless_a_block_says_otherwise(
    schedule, code, tmp_path, capsys
):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({
        "recipe": 1, "name": "r", "model": {"path": "embedded:model"},
        "stages": [{
            "name": "s", "adapter": {"method": "lora"}, "alignment": {"method": "sft"},
            "data": {"method": "triviaqa", "path": "embedded:trivia"},
            "train": {"optim": "schedule_free_sgd", **schedule},
        }],
    }))  # fmt: skip
    assert main(["validate", str(recipe)]) == code
    told = " ".join(capsys.readouterr().err.split())
    name = schedule.get("lr_scheduler_type", "linear")
    assert (f"'{name}' lowers it" in told and "constant_with_warmup" in told) == (code == 2)


@pytest.mark.parametrize(("name", "reason"), [
    ("galore_adamw", "no checkpoint of tensors and numbers holds"),
    ("apollo_adamw_layerwise", "no checkpoint of tensors and numbers holds"),
    ("lomo", "within the backward pass"),
    ("adalomo", "within the backward pass"),
    ("schedule_free_radam", "its first steps move nothing"),
])  # fmt: skip
def test_an_optimiser_of_other_tools_is_refused_with_the_reason(name, reason):
    with pytest.raises(ValidationError, match=f"'{name}' is not offered: .*{reason}"):
        TrainSettings(optim=name)


@pytest.mark.parametrize(("devices", "fused"), [((True, True), True), ((True, False), False)])
def test_adamw_is_fused_where_all_that_it_trains_is_on_a_gpu(devices, fused, monkeypatch):
    made = {}
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, **options: made.update(options))
    groups = [{"params": [SimpleNamespace(is_cuda=on_a_gpu)]} for on_a_gpu in devices]
    cls = of_torch.AdamwTorch
    method = cls(cls.Config(method="adamw_torch"))
    method.make(groups, TrainSettings())
    assert made["fused"] is fused
