"""A finished stage that is asked to train longer: goes on from its end, or says why it cannot."""

from __future__ import annotations

import copy
import json

import pytest

from llmft.engine.session import resume_recipe
from llmft.recipes.load import load_recipe
from llmft.recipes.recipe import Stage
from llmft.registry.registry import Registry
from llmft.runs.edits import Edit
from llmft.runs.extending import before_it_was_longer, why_not_extended
from llmft.system import fsio
from llmft.training.optimizer import installed_method


@pytest.fixture
def steady(recipe):
    stage = recipe["stages"][0]
    del stage["evaluate"]
    del stage["train"]["max_steps"]
    stage["adapter"]["lora_dropout"] = 0.2
    stage["train"] |= {"num_train_epochs": 1, "lr_scheduler_type": "constant_with_warmup",
                       "warmup_steps": 2, "save_strategy": "epoch", "logging_steps": 1}  # fmt: skip
    return recipe


def longer(recipe: dict, **train) -> dict:
    recipe = copy.deepcopy(recipe)
    recipe["stages"][0]["train"] |= train
    return recipe


def resumed(recipe: dict, folder, tmp_path):
    path = tmp_path / "longer.yaml"
    path.write_text(json.dumps(recipe))
    job = load_recipe(path, Registry.discover(), [f"output_dir={tmp_path / 'runs'}"])
    return resume_recipe(job, folder)


def weights(folder) -> str:
    return fsio.sha256(folder / "stages/sft/adapter/adapter_model.safetensors")


def test_two_epochs_from_the_end_of_one_are_two_epochs_to_the_bit(steady, run, tmp_path, capsys):
    first = run(steady)
    made = weights(first.folder)
    two = resumed(longer(steady, num_train_epochs=2), first.folder, tmp_path)
    told = capsys.readouterr().out
    assert "sft: trains longer, from its end" in told
    assert "continues after step 10" in told
    assert two.stages["sft"].steps == 20
    assert fsio.sha256(first.folder / "replaced/sft-1/adapter/adapter_model.safetensors") == made
    whole = run(longer(steady, num_train_epochs=2))
    assert weights(two.folder) == weights(whole.folder) != made
    again = resumed(longer(steady, num_train_epochs=2), first.folder, tmp_path)
    assert again.already_finished


def test_a_schedule_over_all_steps_is_named_and_the_stage_runs_again(steady, run, tmp_path, capsys):
    steady = longer(steady, lr_scheduler_type="linear")
    first = run(steady)
    two = resumed(longer(steady, num_train_epochs=2), first.folder, tmp_path)
    told = capsys.readouterr().out
    assert "sft: runs again, because lr_scheduler_type: linear spreads the learning rate" in told
    assert "continues after" not in told
    assert two.stages["sft"].steps == 20


def stage(**train) -> Stage:
    return Stage.model_construct(name="sft", train=Stage.model_fields["train"].annotation(**train))


def why(before, after, folder):
    return why_not_extended(before, after, installed_method("schedule", after.train), folder, 5)


STEADY = {"lr_scheduler_type": "constant"}


@pytest.mark.parametrize(("before", "after", "told"), [
    (STEADY, STEADY | {"num_train_epochs": 2.0}, ""),
    (STEADY | {"max_steps": 5}, STEADY | {"max_steps": 9}, ""),
    ({}, {"num_train_epochs": 2.0}, "lr_scheduler_type: linear"),
    (STEADY | {"max_steps": 5}, STEADY, "max_steps was removed"),
    (STEADY | {"max_steps": 5}, STEADY | {"max_steps": 4}, "5 steps, and is to take 4"),
    (STEADY | {"num_train_epochs": 2.0}, STEADY, "2 epochs, and is to take fewer"),
    ({"lr_scheduler_type": "inverse_sqrt", "warmup_ratio": 0.1},
     {"lr_scheduler_type": "inverse_sqrt", "warmup_ratio": 0.1, "num_train_epochs": 2.0},
     "warmup_ratio is a share"),
])  # fmt: skip
def test_why_a_stage_cannot_go_on_from_its_end(before, after, told, tmp_path):
    (tmp_path / "checkpoints/step-5").mkdir(parents=True)
    said = why(stage(**before), stage(**after), tmp_path)
    assert told in said
    assert bool(said) == bool(told)


def test_a_stage_without_a_checkpoint_of_its_end_cannot_go_on(tmp_path):
    said = why(stage(**STEADY), stage(**STEADY, num_train_epochs=2.0), tmp_path)
    assert "no checkpoint of its end" in said


def test_other_edits_beside_the_length_are_none_of_its_business():
    now = stage(num_train_epochs=2.0)
    key = ("stages", 0, "train")
    length = Edit((*key, "num_train_epochs"), 1.0, 2.0, "sft")
    assert before_it_was_longer(now, [length]).train.num_train_epochs == 1.0
    rate = Edit((*key, "learning_rate"), 1.0, 2.0, "sft")
    assert before_it_was_longer(now, [length, rate]) is None
    assert before_it_was_longer(now, []) is None
