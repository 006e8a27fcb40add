"""The budget of tokens that a plan proposes for a GPU: one that fits, and has fewer passes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from llmft.cli.main import main
from llmft.planning import filling
from llmft.planning.filling import fillings
from llmft.planning.fitting import changes, named_memory
from llmft.planning.planner import plan_recipe


@pytest.fixture
def planned(recipe, loaded):
    def planned(gpu="24GB", in_ram=False, **train):
        stage = recipe["stages"][0]
        stage["train"] = {"max_steps": 3, "per_device_train_batch_size": 1, **train}
        plan = plan_recipe(loaded(recipe), in_ram=in_ram)
        return plan, named_memory(gpu)

    return planned


def test_it_proposes_a_budget_that_fits_and_has_fewer_passes(planned):
    plan, memory = planned(gradient_accumulation_steps=20)
    (made,) = fillings(plan, memory)
    counts = plan.stages[0].counts
    step = counts.tokens / counts.items * 20
    assert made.tokens < 2 * step
    assert (made.stage, made.before) == ("only", 20)
    assert step / made.tokens <= made.passes <= 0.8 * made.before
    again, _ = planned(gradient_accumulation_steps=20, per_device_train_tokens=made.tokens)
    assert again.stages[0].peak.total == made.peak > plan.stages[0].peak.total
    assert again.stages[0].counts.passes_per_step == made.passes
    assert made.plan.recipe.stages[0].train.per_device_train_tokens == made.tokens


@pytest.mark.parametrize(
    "train", [{"gradient_accumulation_steps": 1}, {"train_batch_size": 8,
               "per_device_train_tokens": 500}],
)  # fmt: skip
def test_it_proposes_none_where_a_step_is_one_pass_or_has_a_budget(planned, train):
    assert fillings(*planned(**train)) == []


@pytest.mark.parametrize(("reads", "count"), [(["collect"], 0), (["run:a/collect"], 1)])
def test_rows_that_a_stage_of_the_plan_makes_are_not_planned_alone(
    planned, monkeypatch, reads, count
):
    plan, memory = planned(gradient_accumulation_steps=20)
    monkeypatch.setattr(filling, "row_references", lambda data: reads)
    assert len(fillings(plan, memory)) == count


def test_it_proposes_none_that_does_not_fit(planned):
    plan, memory = planned(gradient_accumulation_steps=20)
    assert fillings(plan, memory)
    tight = named_memory(f"{(memory.reserved + plan.worst.peak.total + 100_000) // 2**20 + 1}MB")
    for made in fillings(plan, tight):
        assert made.peak <= tight.room


def test_where_a_budget_does_not_fit_a_smaller_one_is_named(planned):
    plan, memory = planned(train_batch_size=20, per_device_train_tokens=65_536)
    less, _ = planned(train_batch_size=20, per_device_train_tokens=256)
    room = (plan.worst.peak.total + less.worst.peak.total) // 2
    assert less.worst.peak.total < room
    tight = replace(memory, total=memory.reserved + room)
    (change,) = changes(plan, tight)
    assert change.fits
    assert change.setting.startswith("train.per_device_train_tokens: ")


def test_the_plan_says_it_with_the_time(recipe, tmp_path, capsys):
    recipe["stages"][0]["train"] = {
        "max_steps": 3, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 20,
    }  # fmt: skip
    recipe["output_dir"] = str(tmp_path / "runs")
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    assert main(["plan", str(path), "--gpu", "H100"]) == 0
    text = capsys.readouterr().out
    assert "fuller passes: only: train.per_device_train_tokens: " in text
    assert "in place of 20.0" in text
    assert " in place of " in text.rpartition(";")[2]
    assert main(["plan", str(path), "--gpu", "H100", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["fillings"]
    assert told["passes_per_step"]["before"] == 20
    assert told["time"]["stages"][0]["stage"] == "only"
    assert main(["plan", str(path)]) == 0
    assert "fuller passes" not in capsys.readouterr().out
