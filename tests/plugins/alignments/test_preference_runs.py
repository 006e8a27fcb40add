"""DPO and ORPO from recipe to adapter, with every adapter: first losses, references, rerankings."""

from __future__ import annotations

import json
import math

import pytest
import torch
from llmft_alignments.cpo import Cpo
from llmft_alignments.dpo import Dpo
from llmft_alignments.dpo.reference import reference_key
from llmft_alignments.orpo import Orpo
from llmft_alignments.reward import Reward
from safetensors import safe_open

from llmft.api.errors import LlmftError
from llmft.modeling.tiny_models import tiny_llama
from llmft.testing import AlignmentContract
from tests.extended import extended

from .conftest import encoded, metrics_of

ADAPTERS = {
    "lora": {"r": 4},
    "dora": {"r": 4},
    "qlora": {"r": 4},
    "prefix": {"num_virtual_tokens": 3},
    "ptuning": {"num_virtual_tokens": 3, "encoder_hidden_size": 16},
    "prompt": {"num_virtual_tokens": 3},
}
LORA_FAMILY = ("lora", "dora", "qlora")


class TestDpo(AlignmentContract):
    method_class = Dpo
    configs = [{}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]}]


class TestOrpo(AlignmentContract):
    method_class = Orpo
    configs = [{}, {"kl_coef": 0.1, "learn_prompt": True}]


class TestCpo(AlignmentContract):
    method_class = Cpo
    configs = [{}, {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 1.0}, {"alpha": 0.25}]


class TestReward(AlignmentContract):
    method_class = Reward
    configs = [{}, {"use_margin": True, "center_rewards_coefficient": 0.01}]


def sft(pairs_file, adapter: str) -> dict:
    """A stage that moves the adapter away from where it starts."""
    return {
        "name": "sft",
        "adapter": {"method": adapter, **ADAPTERS[adapter]},
        "alignment": {"method": "sft"},
        "data": {"method": "jsonl", "path": str(pairs_file), "columns": {"completion": "chosen"}},
        "train": {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.02},
    }


@pytest.mark.parametrize("adapter", extended(ADAPTERS, ("lora", "dora", "prompt")))
def test_the_first_dpo_loss_is_ln_2_where_start_from_names_a_stage(run, stage, pairs_file, adapter):
    dpo = stage("dpo", start_from="sft")
    summary = run(sft(pairs_file, adapter), dpo)
    first, *_, last = metrics_of(summary, "dpo")
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4 if adapter == "qlora" else 1e-5)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-4)
    assert last["loss"] < first["loss"]


@pytest.mark.parametrize("adapter", extended(ADAPTERS, ("lora", "prompt")))
def test_without_start_from_it_is_ln_2_for_the_lora_family_alone(run, stage, adapter):
    summary = run(stage("dpo", adapter={"method": adapter, **ADAPTERS[adapter]}))
    first = metrics_of(summary, "dpo")[0]["loss"]
    if adapter in LORA_FAMILY:
        assert first == pytest.approx(math.log(2), abs=1e-4 if adapter == "qlora" else 1e-5)
    else:  # a fresh soft prompt moves the policy before its first step
        assert first != pytest.approx(math.log(2), abs=1e-4 if adapter == "qlora" else 1e-5)


@pytest.mark.parametrize("adapter", extended(ADAPTERS, ("lora", "prompt")))
def test_orpo_and_reward_train_with_every_adapter(run, stage, adapter):
    block = {"method": adapter, **ADAPTERS[adapter]}
    summary = run(stage("orpo", adapter=block), stage("reward", adapter=block))
    assert summary.stages["orpo"].after["loss"] < summary.stages["orpo"].before["loss"]
    losses = [line["loss"] for line in metrics_of(summary, "reward")]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("adapter", ["lora", "full", "prefix"])
def test_simpo_scores_held_out_pairs_by_its_own_reward(run, stage, adapter):
    block = {"method": adapter, **ADAPTERS.get(adapter, {})}
    options = {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 1.0, "beta": 2.0}
    cpo = stage("cpo", adapter=block, options=options)
    cpo["train"] |= {"max_steps": 8}
    summary = run(cpo)
    result = summary.stages["cpo"]
    assert result.after["objective_loss"] < result.before["objective_loss"]
    assert result.after["reward_margin"] > result.before["reward_margin"]
    rows = json.loads((summary.folder / "stages/cpo/scores.json").read_text())["after"]
    losses = [math.log1p(math.exp(1.0 - margin)) for margin in rows["reward_margin"]]
    assert rows["objective_loss"] == pytest.approx(losses, rel=1e-5)
    assert rows["reward_accuracy"] == [float(margin > 0) for margin in rows["reward_margin"]]
    # Averaged over tokens: not beta times the difference of the sums.
    sums = [2.0 * margin for margin in rows["preference_margin"]]
    assert rows["reward_margin"] != pytest.approx(sums, rel=0.05)


def test_dpo_scores_held_out_pairs_and_answers(run, stage):
    evaluate = {"metrics": ["exact_match", "loss"], "holdout": 0.25, "max_new_tokens": 3}
    dpo = stage("dpo", evaluate=evaluate)
    dpo["train"] |= {"max_steps": 12}
    summary = run(dpo)
    result = summary.stages["dpo"]
    assert result.after["preference_accuracy"] >= result.before["preference_accuracy"]
    assert result.after["preference_margin"] > result.before["preference_margin"]
    assert {"exact_match", "loss"} <= result.after.keys()
    # Against the reference, which the policy starts as: nothing won, and the loss at margin 0.
    assert (result.before["reward_accuracy"], result.before["reward_margin"]) == (0.0, 0.0)
    assert result.before["objective_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert result.after["objective_loss"] < math.log(2)
    rows = json.loads((summary.folder / "stages/dpo/scores.json").read_text())
    moved = [
        0.1 * (after - before)  # beta, and what the policy's own margin has gained
        for before, after in zip(
            rows["before"]["preference_margin"], rows["after"]["preference_margin"], strict=True
        )
    ]
    assert rows["after"]["reward_margin"] == pytest.approx(moved, abs=1e-6)
    losses = [math.log1p(math.exp(-margin)) for margin in moved]
    assert rows["after"]["objective_loss"] == pytest.approx(losses, abs=1e-6)
    accuracy = result.scores["after"]["preference_accuracy"]
    assert accuracy["low"] <= result.after["preference_accuracy"] <= accuracy["high"]
    change = result.scores["difference"]["objective_loss"]
    assert change["value"] == pytest.approx(math.fsum(losses) / 10 - math.log(2), abs=1e-6)
    assert result.generation["max_new_tokens"] == 3
    assert result.generation["do_sample"] is False
    card = (summary.folder / "stages/dpo/adapter/README.md").read_text()
    assert f"| objective_loss | {math.log(2):.4f} [" in card
    assert " n=10 |" in card


def test_the_reference_is_computed_once_and_kept_with_its_key(run, stage, monkeypatch):
    from llmft_alignments.dpo import reference

    summary = run(stage("dpo"))
    path = summary.folder / "stages" / "dpo" / "reference.safetensors"
    with safe_open(path, "pt") as file:
        assert len(file.metadata()["key"]) == 64
        assert file.get_tensor("logps_P2").shape == (32, 2)

    from types import SimpleNamespace

    def again(*_: object) -> None:
        raise AssertionError("it was computed again")

    models = SimpleNamespace(model=tiny_llama(), shares_prompts=False, reference=torch.no_grad)
    context = SimpleNamespace(
        folder=path.parent, models=models, log=SimpleNamespace(progress=again)
    )
    pairs = encoded()
    key = reference_key(context.models.model, pairs)
    reference.save_tensors(path, {"logps_P2": torch.ones(4, 2)}, key)
    assert reference.reference_logps(context, pairs).tolist() == [[1.0, 1.0]] * 4
    context.train = type("Train", (), {"per_device_eval_batch_size": 4})
    with pytest.raises(AssertionError, match="computed again"):
        reference.reference_logps(context, pairs[:3])
    whole = path.read_bytes()
    for damaged in (whole[:60], whole[:-1] + b"\x40"):
        path.write_bytes(damaged)
        with pytest.raises(AssertionError, match="computed again"):
            reference.reference_logps(context, pairs)


def test_the_references_key_follows_base_adapter_and_rows(pairs):
    model = tiny_llama()
    key = reference_key(model, pairs)
    assert key == reference_key(tiny_llama(), pairs)
    assert key != reference_key(tiny_llama(1), pairs)
    assert key != reference_key(model, pairs[:3])
    assert key != reference_key(model, encoded(limit=24))
    with torch.no_grad():
        model.model.norm.weight[3] += 1
    assert key != reference_key(model, pairs)


def test_orpos_penalty_holds_the_policy_near_its_start(run, stage):
    moved = {}
    for coefficient in (0.0, 50.0):
        orpo = stage("orpo", options={"kl_coef": coefficient})
        orpo["train"] |= {"max_steps": 8}
        result = run(orpo).stages["orpo"]
        moved[coefficient] = abs(result.after["loss"] - result.before["loss"])
    assert moved[50.0] < moved[0.0] / 4


def test_a_reward_model_ranks_the_answers_for_orpo(run, stage, tmp_path):
    """The reward model learns that what the file calls rejected is better, so ORPO prefers it."""
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"say {n}:", "good": f" {n % 7}", "bad": f" {(n + 3) % 7} or so"}
        for n in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    right = {"method": "preference", "path": str(path),
             "columns": {"prompt": "prompt", "chosen": "good", "rejected": "bad"}}  # fmt: skip
    wrong = {**right, "columns": {**right["columns"], "chosen": "bad", "rejected": "good"}}
    reward = stage("reward", data=wrong)
    reward["train"] |= {"max_steps": 25}
    orpo = stage("orpo", data=right, options={"reward_model": "reward", "beta": 1.0})
    orpo["train"] |= {"max_steps": 12}
    summary = run(reward, orpo)
    assert summary.stages["reward"].after["accuracy"] == 1.0
    result = summary.stages["orpo"]
    assert result.after["preference_margin"] < result.before["preference_margin"] - 1


def test_orpo_refuses_a_policy_stage_as_reward_model(run, stage, pairs_file):
    with pytest.raises(LlmftError, match="reward_model"):
        run(sft(pairs_file, "lora"), stage("orpo", options={"reward_model": "sft"}))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss_type": ["sigmoid"], "loss_weights": [1.0, 2.0]}, "2 entries for 1 losses"),
        ({"loss_type": ["hinge"], "label_smoothing": 0.1}, "label_smoothing is read by"),
        ({"loss_type": ["exo_pair"]}, "needs label_smoothing above 0"),
        ({"loss_type": ["nca_pair"], "f_divergence_type": "forward_kl"}, "reverse_kl only"),
        ({"loss_type": "sigmoid"}, "list"),
    ],
)
def test_dpo_settings_that_cannot_work_together_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Dpo.Config.model_validate({"method": "dpo", **options})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss_type": "hinge", "label_smoothing": 0.1}, "label_smoothing is read by"),
        ({"loss_type": "ipo", "simpo_gamma": 0.1}, "simpo_gamma is read by loss_type simpo only"),
        ({"loss_type": "kto_pair"}, "sigmoid"),
    ],
)
def test_cpo_settings_that_cannot_work_together_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Cpo.Config.model_validate({"method": "cpo", **options})


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["dpo_quick", "orpo_quick"])
def test_the_quick_recipes_teach_what_is_preferred_and_keep_the_answers(recipe, tmp_path):
    from llmft.cli.commands import shipped
    from llmft.engine.session import run_recipe
    from llmft.recipes.load import load_recipe
    from llmft.registry.registry import Registry

    registry = Registry.discover()
    overrides = [f"output_dir={tmp_path}"]
    loaded = load_recipe(shipped.find(recipe), registry, overrides)
    result = run_recipe(loaded).stages[recipe.removesuffix("_quick")]
    assert 0.3 <= result.before["preference_accuracy"] <= 0.7
    assert result.after["preference_accuracy"] >= 0.85
    assert result.after["exact_match"] >= result.before["exact_match"] - 0.03
