"""A run that is scored during training, stopped anywhere, ends as one that nothing stopped."""

from __future__ import annotations

import json
import signal

import pytest

from tests.end_to_end.checkpoints.harness import run_in_child, state_of, tiny_recipe
from tests.end_to_end.checkpoints.test_resume import at, metrics_of
from tests.extended import extended

ASKED = {
    "metrics": ["loss", "exact_match"], "holdout": 0.3, "max_new_tokens": 2,
    "eval_strategy": "steps", "eval_steps": 2, "generate_every": 2,
    "load_best_model_at_end": True, "early_stopping_patience": 2, "early_stopping_threshold": 0.01,
}  # fmt: skip


def scored(recipe: dict, **train) -> dict:
    """Return the recipe with evaluations that find a best step in the middle, and stop early."""
    recipe["stages"][0]["evaluate"] = ASKED
    recipe["stages"][0]["train"] |= {
        "max_steps": 14, "learning_rate": 0.02, "save_steps": 3, "warmup_steps": 1, **train,
    }  # fmt: skip
    return recipe


@pytest.fixture(scope="session")
def straight(server, tmp_path_factory, model_folder, rows_file):
    """The run that nothing stops."""
    data = scored(tiny_recipe(model_folder, rows_file))
    done = run_in_child(server, tmp_path_factory.mktemp("scored"), data, "whole")
    assert done.code == 0, done.text
    return done


def outcome(run) -> dict:
    result = json.loads((run.folder / "stages/sft/result.json").read_text())
    told = {k: v for k, v in result["metrics"].items() if k.startswith("best_")}
    return {**state_of(run.folder), "told": told, "steps": result["steps"],
            "after": result["after"]}  # fmt: skip


def test_the_run_stops_early_with_a_best_step_before_it(straight):
    metrics, done = metrics_of(straight), outcome(straight)
    assert 0 < metrics["best_step"] < done["steps"] < 14
    assert done["sft/checkpoints"] == [
        f"step-{metrics['best_step']:.0f}", f"step-{done['steps']}",
    ]  # fmt: skip
    assert f"step {done['steps']} of 14" in straight.text
    assert done["after"]["loss"] == metrics["best_loss"]


@pytest.mark.extended
def test_c13_t9_a_run_killed_between_evaluations_and_checkpoints_ends_bit_exactly(
    go, recipe, straight
):
    recipe, place = scored(recipe), "killed"
    end = outcome(straight)["steps"]
    best = int(metrics_of(straight)["best_step"])
    # Scores are told, and no checkpoint is written yet; then of a new best; then of the last.
    kills = [at(2, phase="score"), at(3), at(best, phase="score"), at(end, phase="score")]
    for number, fault in enumerate(kills):
        assert go(recipe, place, resume=number > 0, fault=fault).code == -signal.SIGKILL
    last = go(recipe, place, resume=True)
    assert last.code == 0, last.text
    assert outcome(last) == outcome(straight)


@pytest.mark.extended
def test_c12_a_run_killed_in_the_last_evaluation_trains_no_further_step(go, recipe, straight):
    recipe = scored(recipe)
    calls = len(outcome(straight)["sft/metrics"])  # more than there are evaluations
    end = outcome(straight)["steps"]
    assert calls > end
    evaluations = 1 + end // 2
    fault = {"kind": "call", "where": "llmft.evaluation.evaluation:row_losses",
             "at": evaluations + 1, "number": signal.SIGKILL}  # fmt: skip
    assert go(recipe, "killed", fault=fault).code == -signal.SIGKILL
    again = go(recipe, "killed", resume=True)
    assert again.code == 0, again.text
    assert f"continues after step {end}" in again.text
    assert "] train" not in again.text
    assert outcome(again) == outcome(straight)


@pytest.mark.parametrize("save_strategy", extended(["steps", "no"], ["steps"]))
def test_t6_a_signal_in_an_evaluation_leaves_it_owed_and_it_is_made_good(
    go, recipe, straight, save_strategy
):
    recipe = scored(recipe, save_strategy=save_strategy)
    fault = {"kind": "call", "where": "llmft.evaluation.evaluation:row_losses", "at": 3,
             "number": signal.SIGTERM}  # fmt: skip
    stopped = go(recipe, "stopped", fault=fault)
    assert stopped.code == 143
    assert "at the end of step 4 of 14" in stopped.text
    state = stopped.folder / "stages/sft/checkpoints/step-4/state.json"
    assert json.loads(state.read_text())["facts"]["evaluation"]["step"] == 2
    again = {**fault, "at": 1}  # while it is made good
    assert go(recipe, "stopped", resume=True, fault=again).code == 143
    resumed = go(recipe, "stopped", resume=True)
    assert resumed.code == 0, resumed.text
    ours, theirs = outcome(resumed), outcome(straight)
    if save_strategy == "no":  # its checkpoints are those of best steps
        ours = {k: v for k, v in ours.items() if k.split("/")[-1] not in CHECKPOINTS}
        theirs = {k: v for k, v in theirs.items() if k.split("/")[-1] not in CHECKPOINTS}
    assert ours == theirs


CHECKPOINTS = ("checkpoints", "tensors", "facts")


def test_c13_a_best_checkpoint_that_is_damaged_is_told(go, recipe, straight):
    recipe = scored(recipe)
    best, end = int(metrics_of(straight)["best_step"]), outcome(straight)["steps"]
    killed = go(recipe, "killed", fault=at(end, phase="score"))
    path = killed.folder / f"stages/sft/checkpoints/step-{best}/state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refused = go(recipe, "killed", resume=True)
    assert refused.code == 6
    assert f"error[E403] the best checkpoint, step-{best}, cannot be used" in refused.text


@pytest.mark.extended
def test_a_stage_that_stopped_early_is_finished(go, recipe, straight):
    recipe = scored(recipe)
    assert go(recipe, "done").code == 0
    again = go(recipe, "done", resume=True)
    assert again.code == 0
    assert "already finished" in again.text
