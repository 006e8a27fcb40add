"""TRL as the referee: the same groups give the same advantages, losses and gradients."""

from __future__ import annotations

import pytest
import torch
from llmft_alignments.grpo import Grpo
from llmft_alignments.rloo import Rloo

from llmft.modeling.tiny_models import tiny_tokenizer

from .conftest import (
    FUNCTIONS,
    GENERATIONS,
    REWARDS,
    TEXTS,
    answers,
    made_by,
    model_of,
    moved,
    objective_of,
    prompts,
)

COMMON = {
    "per_device_train_batch_size": 8, "num_generations": GENERATIONS, "max_completion_length": 20,
    "report_to": [], "use_cpu": True, "gradient_checkpointing": False, "bf16": False,
    "disable_tqdm": True, "reward_weights": [one.get("weight", 1.0) for one in REWARDS],
}  # fmt: skip


def reward_functions() -> list:
    """Our rewards, as TRL asks for rewards."""
    found = []
    for block, kind in zip(REWARDS, ("length", "format"), strict=True):

        def reward(prompts, completions, kind=kind, block=block, **_):
            function = made_by(FUNCTIONS[kind].Config.model_validate(block))
            return [function.score("", text, ()) for text in completions]

        reward.__name__ = kind
        found.append(reward)
    return found


def trainer_of(kind: str, folder, **options):
    import trl
    from datasets import Dataset

    args = getattr(trl, f"{kind}Config")(output_dir=str(folder), **COMMON, **options)
    rows = [{"prompt": one.prompt} for one in prompts()]
    made = getattr(trl, f"{kind}Trainer")(
        model=model_of(packed=False), reward_funcs=reward_functions(), args=args,
        processing_class=tiny_tokenizer(pad=True), train_dataset=Dataset.from_list(rows * 4),
    )  # fmt: skip
    made.current_gradient_accumulation_steps = 1
    return made


@pytest.fixture(scope="module")
def grpo(tmp_path_factory):
    return trainer_of("GRPO", tmp_path_factory.mktemp("trl"))


@pytest.fixture(scope="module")
def rloo(tmp_path_factory):
    return trainer_of("RLOO", tmp_path_factory.mktemp("trl"), beta=0.0)


def fused(model, temperature: float):
    """Return a model prepared as TRL's trainers prepare theirs."""
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model, temperature=temperature, outputs=("log_probs", "entropy"))
    return model


def of_trl(trainer, monkeypatch, temperature: float = 1.0):
    """Return TRL's advantages, loss and model, after the policy has moved from what sampled."""
    asked = [prompt for prompt in prompts() for _ in range(GENERATIONS)]
    given = {
        "prompt_ids": [list(one.input_ids) for one in asked],
        "completion_ids": [one.ids for one in answers()],
    }
    sampled = (given["prompt_ids"], given["completion_ids"], None, TEXTS, None, {}, None, None)
    if type(trainer).__name__ == "RLOOTrainer":
        sampled = (*sampled[:2], TEXTS)
    monkeypatch.setattr(trainer, "_generate", lambda prompts: sampled)
    monkeypatch.setattr(trainer, "model", fused(model_of(packed=False), temperature).train())
    monkeypatch.setattr(trainer, "ref_model", fused(model_of(1, packed=False), temperature))
    inputs = trainer._generate_and_score_completions([{"prompt": one.prompt} for one in asked])
    moved(trainer.model)
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return inputs["advantages"], loss.detach(), trainer.model


def of_ours(method, **options):
    """Return our advantages, loss and model, of the same groups."""
    model = model_of().train()
    objective = objective_of(method, model, model_of(1), num_iterations=2, **options)
    made = objective.sample_rollouts(prompts(), range(2), 1, lambda: False)
    moved(model)
    loss, noted = objective.loss(model, made)
    loss = loss / objective.weight(made)
    loss.backward()
    return torch.tensor([one.advantage for one in made]), loss.detach(), model, noted


def same(theirs, ours) -> None:
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-6, rtol=1e-6)
    named = {name: p.grad for name, p in theirs[2].named_parameters()}
    for name, parameter in ours[2].named_parameters():
        largest = max(1.0, float(named[name].abs().max()))
        torch.testing.assert_close(
            parameter.grad, named[name], atol=2e-6 * largest, rtol=1e-4, msg=name
        )


CASES: dict[str, dict] = {
    "grpo": {"loss_type": "grpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "dapo": {"loss_type": "dapo"},
    "bnpo": {"loss_type": "bnpo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.5},
    "sapo": {"loss_type": "sapo", "sapo_temperature_pos": 0.7, "sapo_temperature_neg": 1.3},
    "by the batch": {"scale_rewards": "batch"},
    "not scaled": {"scale_rewards": "none"},
    "decoupled": {"multi_objective_aggregation": "normalize_then_sum"},
    "clip-higher": {"epsilon": 0.1, "epsilon_high": 0.3},
    "two-sided": {"delta": 1.4},
    "GSPO": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.01},
    "with a reference": {"beta": 0.3},
    "with a plain KL": {"beta": 0.3, "use_bias_correction_kl": False, "loss_type": "grpo"},
    "truncated ones masked": {"mask_truncated_completions": True},
    "truncated ones masked, by answer": {
        "mask_truncated_completions": True, "loss_type": "grpo", "beta": 0.1,
    },
    "with an entropy bonus": {"entropy_coef": 0.2, "loss_type": "grpo"},
    "another temperature": {"temperature": 0.7},
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_grpo_advantages_loss_and_gradient_are_trls(grpo, name, monkeypatch):
    options = CASES[name]
    plain = {
        "loss_type": "dapo", "scale_rewards": "group", "beta": 0.0,
        "multi_objective_aggregation": "sum_then_normalize", "importance_sampling_level": "token",
        "mask_truncated_completions": False, "num_iterations": 2, "entropy_coef": 0.0,
        "epsilon_low": options.get("epsilon", 0.2),
        "epsilon_high": options.get("epsilon_high", options.get("epsilon", 0.2)),
    }  # fmt: skip
    for key, value in (plain | options).items():
        if hasattr(grpo, key):
            monkeypatch.setattr(grpo, key, value)
    for key in ("delta", "sapo_temperature_pos", "sapo_temperature_neg", "use_bias_correction_kl"):
        if key in options:
            monkeypatch.setattr(grpo.args, key, options[key])
    monkeypatch.setattr(grpo, "_entropy_bonus_enabled", bool(options.get("entropy_coef")))
    theirs = of_trl(grpo, monkeypatch, options.get("temperature", 1.0))
    *ours, noted = of_ours(Grpo, **options)
    same(theirs, ours)
    assert noted["ratio"] != pytest.approx(8.0), "the policy has moved"


@pytest.mark.parametrize(
    "options",
    [{}, {"beta": 0.3}, {"normalize_advantages": True}, {"reward_clip_range": (0.2, 0.6)},
     {"epsilon": 0.05, "epsilon_high": 0.4}, {"mask_truncated_completions": True, "beta": 0.2}],
    ids=str,
)  # fmt: skip
def test_rloo_advantages_loss_and_gradient_are_trls(rloo, options, monkeypatch):
    options = {"beta": 0.0, **options}
    plain = {
        "normalize_advantages": False, "reward_clip_range": None, "num_iterations": 2,
        "mask_truncated_completions": False, "epsilon_low": options.get("epsilon", 0.2),
        "epsilon_high": options.get("epsilon_high", 0.2),
    }  # fmt: skip
    for key, value in (plain | options).items():
        if hasattr(rloo, key):
            monkeypatch.setattr(rloo, key, value)
    theirs = of_trl(rloo, monkeypatch)
    *ours, _ = of_ours(Rloo, **options)
    same(theirs, ours)


def test_trls_defaults_are_ours_but_for_dropout():
    import trl

    differ = {"disable_dropout"}
    for method, theirs in ((Grpo, trl.GRPOConfig), (Rloo, trl.RLOOConfig)):
        known = {name: field.default for name, field in theirs.__dataclass_fields__.items()}
        for name, field in method.Config.model_fields.items():
            # Ours counts optimiser updates; TRL's None is as many passes as one update takes.
            if name in known and name not in differ | {"steps_per_generation"}:
                assert field.default == known[name], f"{method.method}: {name}"
