"""C11: PPO that is killed anywhere in a step ends in the very state of one that never stopped."""

from __future__ import annotations

import json
import signal

import pytest

from tests.end_to_end.checkpoints.harness import run_in_child, state_of
from tests.extended import extended

OBJECTIVE = "llmft_alignments.ppo.objective:PpoObjective"
ADAPTERS = {
    "lora": {"r": 2, "lora_dropout": 0.2},
    "dora": {"r": 2},
    "qlora": {"r": 2},
    "prefix": {"num_virtual_tokens": 3},
    "ptuning": {"num_virtual_tokens": 3, "encoder_reparameterization_type": "LSTM",
                "encoder_dropout": 0.2},
    "prompt": {"num_virtual_tokens": 3},
}  # fmt: skip
PLACES = {
    "in a rollout": ("llmft.modeling.decoding:log_probabilities", 28),
    "between drawing and judging": ("llmft_alignments.ppo.rollouts:RolloutSampler.judge", 6),
    "between reward and update": (f"{OBJECTIVE}.rollouts", 4),
    "in the inner epochs": (f"{OBJECTIVE}.loss", 14),
    "after the updates": (f"{OBJECTIVE}.step_metrics", 3),
    "in the last scoring": ("llmft_alignments.ppo:Ppo.evaluate", 2),
}


def ppo_recipe(recipe: dict, **adapter) -> dict:
    """Return a recipe of six steps, four updates each, that uses all that PPO keeps."""
    stage = recipe["stages"][0]
    stage |= {
        "name": "ppo",
        "adapter": adapter or {"method": "lora", **ADAPTERS["lora"]},
        "alignment": {
            "method": "ppo", "reward": {"method": "length", "target": 4, "unit": "characters"},
            "response_length": 5, "temperature": 1.0, "num_ppo_epochs": 2, "num_mini_batches": 2,
            "adap_kl_ctrl": True, "target": 0.5, "horizon": 50, "reward_scaling": True,
        },
        "evaluate": {"metrics": [], "holdout": 0.2},
    }  # fmt: skip
    return recipe


def killed_in(place: str, places: dict = PLACES) -> dict:
    where, at = places[place]
    return {"kind": "call", "where": where, "at": at, "number": int(signal.SIGKILL)}


@pytest.fixture(scope="session")
def whole_ppo(server, tmp_path_factory, model_folder, rows_file):
    from tests.end_to_end.checkpoints.harness import tiny_recipe

    data = ppo_recipe(tiny_recipe(model_folder, rows_file))
    done = run_in_child(server, tmp_path_factory.mktemp("ppo"), data, "whole")
    assert done.code == 0, done.text
    return done


@pytest.mark.parametrize("place", extended(PLACES, ("in a rollout",)))
def test_c11_a_ppo_stage_killed_anywhere_in_a_step_ends_bit_exactly(go, recipe, whole_ppo, place):
    recipe = ppo_recipe(recipe)
    assert go(recipe, "killed", fault=killed_in(place)).code == -signal.SIGKILL
    resumed = go(recipe, "killed", resume=True)
    assert resumed.code == 0, resumed.text
    assert "continues after step" in resumed.text
    assert state_of(resumed.folder) == state_of(whole_ppo.folder)
    results = [json.loads((f / "stages/ppo/result.json").read_text()) for f in
               (whole_ppo.folder, resumed.folder)]  # fmt: skip
    assert results[0]["before"] == results[1]["before"]
    assert results[0]["after"] == results[1]["after"]


@pytest.mark.parametrize(
    "method", extended([name for name in ADAPTERS if name != "lora"], ["prefix"])
)
def test_c11_every_adapter_goes_on_bit_exactly(go, recipe, method):
    recipe = ppo_recipe(recipe, method=method, **ADAPTERS[method])
    whole = go(recipe, "whole")
    assert whole.code == 0, whole.text
    killed = go(recipe, "killed", fault=killed_in("in the inner epochs"))
    assert killed.code == -signal.SIGKILL
    resumed = go(recipe, "killed", resume=True)
    assert resumed.code == 0, resumed.text
    assert state_of(resumed.folder) == state_of(whole.folder)


def test_a_signal_in_a_rollout_stops_soon_and_keeps_the_step_before(go, recipe, whole_ppo):
    recipe = ppo_recipe(recipe)
    recipe["stages"][0]["train"]["save_strategy"] = "no"
    fault = killed_in("in a rollout") | {"number": int(signal.SIGTERM)}
    stopped = go(recipe, "stopped", fault=fault)
    assert stopped.code == 143
    steps = sorted(p.name for p in stopped.folder.glob("stages/ppo/checkpoints/*"))
    assert len(steps) == 1
    assert f"at the end of step {steps[0][5:]} of 6" in stopped.text
    recipe["stages"][0]["train"]["save_strategy"] = "steps"
    resumed = go(recipe, "stopped", resume=True)
    assert resumed.code == 0, resumed.text
    assert state_of(resumed.folder) == state_of(whole_ppo.folder)


def test_the_controller_and_the_scores_moments_are_kept(whole_ppo):
    facts = json.loads((whole_ppo.folder / "stages/ppo/checkpoints/step-6/state.json").read_text())[
        "facts"
    ]["objective"]
    assert facts["kl_coef"] != 0.05
    assert facts["scale_sums"][0] > 6
    assert facts["watch"]["steps"] == 6
