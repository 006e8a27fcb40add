"""PPO from recipe to adapter: every kind of adapter, its references, rewards and settings."""

from __future__ import annotations

import json
import math

import pytest
import torch
from llmft_alignments.ppo import Ppo
from safetensors.torch import load_file

from llmft.api.errors import LlmftError
from llmft.testing import AlignmentContract
from tests.extended import extended

from .conftest import metrics_of

ADAPTERS = {
    "lora": {"r": 4, "lora_dropout": 0.3},
    "dora": {"r": 4},
    "qlora": {"r": 4},
    "prefix": {"num_virtual_tokens": 3},
    "ptuning": {"num_virtual_tokens": 3, "encoder_hidden_size": 16},
    "prompt": {"num_virtual_tokens": 3},
}
ONE_UPDATE = {"num_ppo_epochs": 1, "num_mini_batches": 1}


class TestPpo(AlignmentContract):
    method_class = Ppo
    configs = [
        {"reward_model": "reward"},
        {"reward": {"method": "exact_match"}, "adap_kl_ctrl": True, "kl_estimator": "k3"},
    ]


@pytest.mark.parametrize("adapter", extended(ADAPTERS, ("dora", "prefix")))
def test_every_adapter_trains_and_its_first_update_has_ratio_1(run, ppo, sft, adapter):
    block = {"method": adapter, **ADAPTERS[adapter]}
    summary = run(sft(**block), ppo(start_from="sft", options=ONE_UPDATE))
    first, *_, last = metrics_of(summary)
    # 4-bit layers round otherwise for a batch of another shape.
    quantised = adapter == "qlora"
    assert first["ratio"] == pytest.approx(1, abs=3e-3 if quantised else 1e-4)
    assert first["approx_kl"] == pytest.approx(0, abs=1e-4 if quantised else 1e-7)
    assert first["kl"] == pytest.approx(0, abs=1e-2 if quantised else 1e-4), (
        "the reference is the start"
    )
    assert abs(last["kl"]) > 1e-6, "the policy has moved, and the reference has not"
    assert (summary.folder / "stages/ppo/adapter/value_head.safetensors").is_file()


@pytest.mark.parametrize("adapter", extended(ADAPTERS, ("lora", "prompt")))
def test_without_start_from_the_reference_is_the_base(run, ppo, adapter):
    block = {"method": adapter, **ADAPTERS[adapter]}
    first = metrics_of(run(ppo(adapter=block, options=ONE_UPDATE)))[0]
    assert first["ratio"] == pytest.approx(1, abs=1e-4)
    same = adapter in ("lora", "dora", "qlora")
    assert (abs(first["kl"]) < 1e-4) is same  # a fresh soft prompt is another policy than the base


def test_within_a_nucleus_too_the_first_update_has_ratio_1(run, ppo):
    """The divergence begins at that of the nuclei from the base: at most -log(top_p) a token."""
    first = metrics_of(run(ppo(options={**ONE_UPDATE, "top_p": 0.6})))[0]
    assert first["ratio"] == pytest.approx(1, abs=1e-4)
    assert first["approx_kl"] == pytest.approx(0, abs=1e-7)
    assert 0.5 * -math.log(0.6) < first["kl"] / first["length"] <= -math.log(0.6)
    whole = metrics_of(run(ppo(options=ONE_UPDATE)))[0]
    assert first["entropy"] < whole["entropy"] - 0.1


@pytest.mark.parametrize("top_p", extended([1.0, 0.8], [0.8]))
def test_the_reward_is_learnt(run, ppo, top_p):
    stage = ppo(
        options={"kl_coef": 0.0, "num_ppo_epochs": 4, "response_length": 8, "top_p": top_p},
        train={"max_steps": 25, "per_device_train_batch_size": 16},
        evaluate={"metrics": [], "holdout": 0.25},
    )
    result = run(stage).stages["ppo"]
    assert result.after["reward"] > result.before["reward"] + 0.15
    assert result.after["win_rate"] > 0.7
    assert result.before["win_rate"] == 0.5
    if top_p == 1:
        assert result.before["kl"] == pytest.approx(0, abs=1e-4)
    assert result.after["kl"] > result.before["kl"] + 0.1


def test_a_reward_model_and_a_function_score_and_both_add_up(run, ppo, rows_file):
    reward = {
        "name": "reward", "adapter": {"method": "prefix", "num_virtual_tokens": 3},
        "alignment": {"method": "reward"},
        "data": {"method": "preference", "path": str(rows_file)},
        "train": {"max_steps": 2, "per_device_train_batch_size": 4},
    }  # fmt: skip
    found = {}
    for name, options in {
        "model": {"reward_model": "reward", "reward": None},
        "function": {},
        "both": {"reward_model": "reward"},
    }.items():
        stages = [ppo(options={**ONE_UPDATE, **options}, train={"max_steps": 1})]
        stages = [reward, *stages] if name != "function" else stages
        found[name] = metrics_of(run(*stages))[0]["reward"]
    assert found["both"] == pytest.approx(found["model"] + found["function"], abs=1e-5)
    assert found["model"] != 0


def test_answers_that_do_not_end_pay_for_it_and_scores_are_scaled_and_cut(run, ppo):
    options = {"missing_eos_penalty": 0.5, "response_length": 2}
    plain = metrics_of(run(ppo(options=options)))[0]
    assert plain["score"] == pytest.approx(plain["reward"] - 0.5 * (1 - plain["ended"]), abs=1e-6)
    cut = metrics_of(run(ppo(options={**options, "reward_clip": 0.01})))[0]
    assert abs(cut["score"]) <= 0.01 + 1e-6
    assert cut["reward"] == plain["reward"]
    scaled = metrics_of(run(ppo(options={"reward_scaling": True})))
    assert all(abs(line["score"]) >= abs(line["reward"]) for line in scaled)


def test_a_step_draws_several_answers_to_a_prompt(run, ppo):
    summary = run(ppo(options={"num_generations": 3}))
    assert summary.stages["ppo"].metrics["items_seen"] == 3 * 4 * 3


def test_target_kl_ends_a_steps_updates_early(run, ppo):
    free = ppo(options={"num_ppo_epochs": 6}, train={"learning_rate": 0.05})
    bound = ppo(options={"num_ppo_epochs": 6, "target_kl": 1e-6}, train={"learning_rate": 0.05})
    assert metrics_of(run(bound))[0]["approx_kl"] < metrics_of(run(free))[0]["approx_kl"]


def test_the_adaptive_coefficient_moves(run, ppo):
    options = {"adap_kl_ctrl": True, "target": 100.0, "horizon": 10}
    coefficients = [line["kl_coef"] for line in metrics_of(run(ppo(options=options)))]
    assert coefficients == sorted(coefficients, reverse=True)
    assert coefficients[0] == pytest.approx(0.05)
    assert coefficients[1] == pytest.approx(0.05 * (1 - 0.2 * 4 / 10))


def test_another_token_may_end_an_answer(run, ppo):
    stage = ppo(options={"stop_token": "e", "response_length": 40})
    assert run(stage).stages["ppo"].steps == 3
    with pytest.raises(LlmftError, match="no token of this tokenizer ends with"):
        run(ppo(options={"stop_token": "ee"}))


def test_completions_are_read_as_prompts(run, ppo, rows_file):
    data = {"method": "jsonl", "path": str(rows_file), "columns": {"completion": "chosen"}}
    stage = ppo(data=data, options={"reward": {"method": "exact_match"}})
    assert run(stage).stages["ppo"].steps == 3


def test_prompts_too_long_lose_their_start_or_stop_the_run(run, ppo):
    summary = run(ppo(train={"max_length": 12, "max_dropped": 1.0}))
    log = (summary.folder / "log.txt").read_text()
    assert "with the start of the prompt cut" in log
    with pytest.raises(LlmftError, match="the answer leaves 6"):
        run(ppo(train={"max_length": 12, "on_long_row": "fail"}))
    with pytest.raises(LlmftError, match="the answer leaves 5"):  # a reward model reads one more
        run(ppo(train={"max_length": 12, "on_long_row": "fail"}, options={"stop_token": "e"}))
    with pytest.raises(LlmftError, match="no room for a prompt"):
        run(ppo(train={"max_length": 7}))


def test_answers_are_kept_before_and_after(run, ppo):
    summary = run(ppo(evaluate={"metrics": ["exact_match"], "holdout": 0.25, "samples": 3}))
    path = summary.folder / "stages/ppo/samples.jsonl"
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    drawn = [s for s in samples if "reward" in s]
    assert [s["when"] for s in drawn] == ["before"] * 3 + ["after"] * 3


def test_a_later_stage_starts_from_the_policy_and_its_reference_is_that_policy(run, ppo):
    again = ppo(start_from="ppo", options=ONE_UPDATE) | {"name": "again"}
    summary = run(ppo(), again)
    assert metrics_of(summary, "again")[0]["kl"] == pytest.approx(0, abs=1e-4)
    heads = [load_file(summary.folder / f"stages/{s}/adapter/value_head.safetensors")
             for s in ("ppo", "again")]  # fmt: skip
    assert not torch.equal(heads[0]["value.2.weight"], heads[1]["value.2.weight"])


def test_the_value_head_learns_at_a_rate_of_its_own(run, ppo):
    """The first update of a fresh head is Adam's: every bias of its output moves by the rate."""
    moved = {}
    for rate in (None, 0.5):
        stage = ppo(options={**ONE_UPDATE, "value_learning_rate": rate}, train={"max_steps": 1})
        folder = run(stage).folder / "stages/ppo/adapter"
        moved[rate] = abs(float(load_file(folder / "value_head.safetensors")["value.2.bias"]))
    assert moved[None] == pytest.approx(0.1 / 32, rel=1e-3), "0.1 / the model's width"
    assert moved[0.5] == pytest.approx(0.5, rel=1e-3)


def test_a_policy_stage_is_no_reward_model(run, ppo, sft):
    with pytest.raises(LlmftError, match="produces a policy, and a reward model is needed"):
        run(sft(), ppo(options={"reward_model": "sft"}))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "nothing scores the answers"),
        ({"reward_model": "r", "top_p": 0.0}, "greater than 0"),
        (
            {"reward_model": "r", "top_p": 0.5, "response_length": 10, "adap_kl_ctrl": True},
            "may lie 6.9 nats",
        ),
        ({"reward_model": "r", "temperature": 0.0}, "greater than 0"),
        ({"reward_model": "r", "init_kl_coef": 0.2}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Ppo.Config.model_validate({"method": "ppo", **options})
