"""C11: GRPO and RLOO that are killed anywhere in a step end as ones that never stopped."""

from __future__ import annotations

import json
import signal

import pytest

from tests.end_to_end.checkpoints.harness import run_in_child, state_of, tiny_recipe
from tests.end_to_end.checkpoints.test_resume_ppo import killed_in, ppo_recipe
from tests.extended import extended

OBJECTIVE = "llmft_alignments.grpo.objective:GroupObjective"
PLACES = {
    "in a rollout": ("llmft.modeling.decoding:log_probabilities", 28),
    "between sampling and scoring": ("llmft_alignments.grpo.rollouts:GroupSampler.judge", 5),
    "between reward and update": (f"{OBJECTIVE}.rollouts", 4),
    "in the updates": (f"{OBJECTIVE}.loss", 30),
    "after the updates": (f"{OBJECTIVE}.step_metrics", 3),
}


def grpo_recipe(recipe: dict, method: str = "grpo") -> dict:
    """Return a recipe of six steps of four updates each, with a reference and two rewards."""
    recipe = ppo_recipe(recipe)
    recipe["stages"][0] |= {
        "name": "grpo",
        "alignment": {
            "method": method,
            "rewards": [
                {"method": "length", "target": 4, "unit": "characters"},
                {"method": "format", "max_words": 1, "weight": 0.5},
            ],
            "num_generations": 2, "max_completion_length": 5, "num_iterations": 2,
            "steps_per_generation": 2, "beta": 0.1,
        },
    }  # fmt: skip
    return recipe


@pytest.fixture(scope="session")
def whole_grpo(server, tmp_path_factory, model_folder, rows_file):
    data = grpo_recipe(tiny_recipe(model_folder, rows_file))
    done = run_in_child(server, tmp_path_factory.mktemp("grpo"), data, "whole")
    assert done.code == 0, done.text
    return done


@pytest.mark.parametrize("place", extended(PLACES, ("in the updates",)))
def test_c11_a_grpo_stage_killed_anywhere_in_a_step_ends_bit_exactly(go, recipe, whole_grpo, place):
    recipe = grpo_recipe(recipe)
    assert go(recipe, "killed", fault=killed_in(place, PLACES)).code == -signal.SIGKILL
    resumed = go(recipe, "killed", resume=True)
    assert resumed.code == 0, resumed.text
    assert "continues after step" in resumed.text
    assert state_of(resumed.folder) == state_of(whole_grpo.folder)
    results = [json.loads((f / "stages/grpo/result.json").read_text()) for f in
               (whole_grpo.folder, resumed.folder)]  # fmt: skip
    assert results[0]["before"] == results[1]["before"]
    assert results[0]["after"] == results[1]["after"]


@pytest.mark.extended
def test_c11_rloo_goes_on_bit_exactly(go, recipe):
    recipe = grpo_recipe(recipe, "rloo")
    whole = go(recipe, "whole")
    assert whole.code == 0, whole.text
    killed = go(recipe, "killed", fault=killed_in("in the updates", PLACES))
    assert killed.code == -signal.SIGKILL
    resumed = go(recipe, "killed", resume=True)
    assert resumed.code == 0, resumed.text
    assert state_of(resumed.folder) == state_of(whole.folder)
