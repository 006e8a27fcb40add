"""`llmft plan` of several stages: which reads which, how often, how much, and at what peak."""

from __future__ import annotations

import json

import pytest

from llmft.cli.main import main
from llmft.planning.memory_tracker import OPTIMIZER
from llmft.planning.planner import plan_recipe
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry

TRAIN = {"per_device_train_batch_size": 2, "max_length": 48}


@pytest.fixture
def pipe(recipe, tmp_path) -> dict:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"say {n}:"}) + "\n" for n in range(10)))
    recipe["stages"][0]["name"] = "sft"
    recipe["stages"] += [
        {
            "name": "collect",
            "start_from": "sft",
            "task": {"method": "collect", "num_return_sequences": 3, "max_new_tokens": 20},
            "data": {"method": "prompts", "path": str(prompts)},
        },
        {
            "name": "rank",
            "task": {
                "method": "rank",
                "samples": "collect",
                "judge": {"method": "length", "target": 5},
            },
        },
        {
            "name": "reward",
            "adapter": {"method": "lora", "r": 2},
            "alignment": {"method": "reward"},
            "data": {"method": "from_stage", "stage": "rank"},
            "train": TRAIN,
            "evaluate": {"metrics": [], "holdout": 0.2},
        },
        {
            "name": "dpo",
            "start_from": "sft",
            "alignment": {"method": "dpo"},
            "data": {"method": "from_stage", "stage": "rank"},
            "train": TRAIN,
        },
    ]
    return recipe


@pytest.mark.parametrize("alignment", [
    {"method": "grpo", "rewards": [{"method": "length", "target": 5}], "num_generations": 2,
     "max_completion_length": 6},
    {"method": "ppo", "reward": {"method": "length", "target": 5}, "response_length": 6},
])  # fmt: skip
def test_a_stage_that_draws_its_answers_is_planned_with_its_update(pipe, loaded, alignment):
    del pipe["stages"][2:]
    pipe["stages"][1].pop("task")
    more = {"alignment": alignment, "train": TRAIN, "name": "policy"}
    pipe["stages"][1].update(more)
    planned = stages(plan_recipe(loaded(pipe)))["policy"]
    assert planned.followed
    peaks = {peak.phase: peak.by_kind for peak in planned.peaks}
    assert {"rollout", "train"} <= peaks.keys()
    assert OPTIMIZER not in peaks["rollout"]
    own = planned.trainable_parameters
    assert peaks["train"][OPTIMIZER] >= 2 * 4 * own  # both moments of AdamW
    computed = planned.computed  # for its time
    prompts, batch, new = computed.decoded
    assert new == 6
    assert prompts >= batch > 0
    assert computed.tokens == 0
    assert computed.train_flops > 0
    assert computed.passes_per_step >= 1


def stages(plan) -> dict:
    return {stage.name: stage for stage in plan.stages}


def test_every_stage_is_planned_with_what_it_reads_and_makes(pipe, loaded, registry):
    found = stages(plan_recipe(loaded(pipe)))
    assert {name: (stage.inputs, stage.produces) for name, stage in found.items()} == {
        "sft": ((), "policy"),
        "collect": (("sft",), "samples"),
        "rank": (("collect",), "preferences"),
        "reward": (("rank",), "reward_model"),
        "dpo": (("sft", "rank"), "policy"),
    }
    assert [stage.trains for stage in found.values()] == [True, False, False, True, True]


@pytest.mark.extended
def test_sampling_takes_the_cache_of_a_batch_of_answers(pipe, loaded, registry):
    def cache(**settings):
        pipe["stages"][1]["task"] |= settings
        stage = stages(plan_recipe(loaded(pipe)))["collect"]
        return stage.drawn, next(p for p in stage.peaks if p.phase == "sample").by_kind["KV cache"]

    drawn, held = cache()
    assert (drawn.prompts, drawn.answers, drawn.max_new_tokens) == (10, 30, 20)
    # 8 rows of 6 prompt tokens, and 19 more, in 2 layers of keys and values of 2 heads of 8 floats
    assert held >= 8 * (6 + 19) * 2 * 2 * 2 * 8 * 4 * 0.8
    assert cache(max_new_tokens=40)[1] > held


@pytest.mark.extended
def test_a_rule_that_ranks_loads_no_model_and_a_reward_model_does(pipe, loaded, registry, capsys):
    found = stages(plan_recipe(loaded(pipe)))
    assert (found["rank"].total_parameters, found["rank"].peak.total) == (0, 0)
    pipe["stages"].append(
        {
            "name": "again",
            "task": {"method": "rank", "samples": "collect", "reward_model": "reward"},
        }
    )
    again = stages(plan_recipe(loaded(pipe)))["again"]
    assert again.total_parameters > 0
    assert any(peak.by_kind.get("earlier stages") for peak in again.peaks)
    assert again.inputs == ("collect", "reward")


def test_people_are_said_to_be_waited_for(pipe, loaded, registry):
    del pipe["stages"][3:], pipe["stages"][2]["task"]["judge"]
    rank = stages(plan_recipe(loaded(pipe)))["rank"]
    assert any("exit code 9" in remark for remark in rank.remarks)


def test_rows_that_a_stage_has_yet_to_make_are_assumed_with_a_remark(pipe, loaded, registry):
    del pipe["stages"][4]
    reward = stages(plan_recipe(loaded(pipe)))["reward"]
    assert any("has not made them yet" in remark for remark in reward.remarks)
    assert any("rows of 48 tokens" in remark for remark in reward.remarks)
    assert reward.peak.phase == "train"
    assert reward.counts is None or reward.counts.rows


def test_prompts_out_of_reach_are_assumed_too(pipe, loaded, registry):
    del pipe["stages"][3:]
    pipe["stages"][1]["data"] = {"method": "prompts", "path": "nobody/prompts-of-this-name"}
    pipe["stages"][1]["train"] = {"max_length": 64}
    found = stages(plan_recipe(loaded(pipe)))
    assert any("prompts of 32 tokens" in remark for remark in found["collect"].remarks)
    assert found["collect"].drawn is None
    assert any(peak.by_kind.get("KV cache") for peak in found["collect"].peaks)
    assert found["rank"].remarks == ()


@pytest.mark.extended
def test_repeated_stages_are_planned_once_and_counted_as_often_as_they_run(
    pipe, loaded, registry, tmp_path, capsys
):
    once = stages(plan_recipe(loaded(pipe)))
    pipe["repeat"] = {"stages": ["collect", "rank", "dpo"], "rounds": 3}
    pipe["stages"] = [pipe["stages"][n] for n in (0, 1, 2, 4)]
    plan = plan_recipe(loaded(pipe))
    assert [(stage.name, stage.rounds) for stage in plan.stages] == [
        ("sft", 1), ("collect", 3), ("rank", 3), ("dpo", 3),
    ]  # fmt: skip
    assert stages(plan)["dpo"].peak == once["dpo"].peak
    path = str(tmp_path / "recipe.yaml")
    assert main(["plan", path]) == 0
    text = capsys.readouterr().out
    assert "2. collect  <- sft" in text
    assert "x 3 rounds" in text
    assert "30 answers" in text
    assert "later rounds, collect-2 to dpo-3," in text
    assert main(["plan", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["stages"]
    assert [stage["rounds"] for stage in found] == [1, 3, 3, 3]
    assert found[1]["drawn"] == {"prompts": 10, "answers": 30, "max_new_tokens": 20}
    assert found[1]["inputs"] == ["sft"]


def test_answers_scored_against_the_base_as_reference_are_planned(tmp_path, model_folders):
    """GRPO from the base with a KL penalty, scored on held-out prompts: two models compute."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "say {n}", "answers": ["{n}"]}}\n' for n in range(8)))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        json.dumps(
            {
                "recipe": 1, "name": "r",
                "model": {"path": str(model_folders["llama"])},
                "stages": [{
                    "name": "grpo", "adapter": {"method": "lora"},
                    "alignment": {"method": "grpo", "beta": 0.1, "max_completion_length": 4,
                                  "rewards": [{"method": "exact_match"}]},
                    "data": {"method": "prompts", "path": str(prompts)},
                    "train": {"max_steps": 2, "per_device_train_batch_size": 8},
                    "evaluate": {"metrics": ["exact_match"], "holdout": 2},
                }],
            }
        )
    )  # fmt: skip
    plan = plan_recipe(load_recipe(recipe, Registry.discover()), in_ram=True)
    (stage,) = plan.stages
    assert not [remark for remark in stage.remarks if "cannot be planned" in remark]
    assert stage.followed
