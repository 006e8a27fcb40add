"""What a step of GRPO makes of given answers: groups, updates, metrics, and the first minibatch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from llmft_alignments.grpo import Grpo
from llmft_alignments.grpo.rollouts import shared_prompts
from llmft_alignments.rloo import Rloo

from llmft.api import Encoded, StageError

from .conftest import TEXTS, answers, model_of, moved, objective_of, prompts


def sampled(objective, step: int = 0):
    return objective.sample_rollouts(prompts(), range(2), step, lambda: False)


def test_an_update_has_whole_groups_and_an_iteration_every_answer_once():
    objective = objective_of(Grpo, num_iterations=2, steps_per_generation=3)
    parts = list(objective.updates(20, 1))
    assert [len(part) for part in parts] == [8, 8, 4] * 2
    for part in parts:
        assert [n % 4 for n in part] == [0, 1, 2, 3] * (len(part) // 4)
    for own in (parts[:3], parts[3:]):
        assert sorted(n for part in own for n in part) == list(range(20))
    assert parts[:3] != parts[3:]
    assert parts == list(objective.updates(20, 1)) != list(objective.updates(20, 2))
    few = list(objective_of(Grpo, steps_per_generation=9).updates(8, 0))
    assert [len(part) for part in few] == [4, 4], "no update is empty"


@pytest.mark.parametrize("method", [Grpo, Rloo])
def test_at_the_first_minibatch_the_ratio_is_1_and_the_kl_0(method):
    model = model_of().train()
    objective = objective_of(method, model, model_of(), num_iterations=2, beta=0.5)
    objective.sampler.context.models.starts_as_reference = True
    made = sampled(objective)
    loss, noted = objective.loss(model, made)
    weight = objective.weight(made)
    assert noted["ratio"] / weight == pytest.approx(1, abs=1e-5)
    assert noted["approx_kl"] / weight == pytest.approx(0, abs=1e-8)
    assert noted["clip_ratio_high"] == noted["clip_ratio_low"] == 0
    if method is Grpo:
        assert noted["kl"] / weight == pytest.approx(0, abs=1e-8)
    assert loss.requires_grad


def test_a_policy_that_has_moved_before_its_first_update_is_refused():
    model = model_of().train()
    objective = objective_of(Grpo, model, num_iterations=2)
    made = sampled(objective)
    moved(model)
    with pytest.raises(StageError, match=r"E307.*its ratio to itself is .* in place of 1"):
        objective.loss(model, made)
    objective._first = False
    objective.loss(model, made)


def test_a_policy_that_does_not_start_at_its_reference_is_refused():
    model = model_of().train()
    objective = objective_of(Grpo, model, model_of(1), beta=0.1)
    made = sampled(objective)
    objective.loss(model, made)  # it need not start there
    objective.sampler.context.models.starts_as_reference = True
    with pytest.raises(StageError, match=r"E307.*its KL to the reference is .* in place of 0"):
        objective.loss(model, made)


def test_one_update_asks_the_policy_once_and_no_reference_is_held():
    objective = objective_of(Grpo, model_of(), "a reference that nobody asks")
    assert objective.sampler.reference is None
    assert all(one.logps is None and one.reference is None for one in sampled(objective))
    assert not objective_of(Rloo, model_of(), beta=0.0).sampler.needs_logps
    assert objective_of(Rloo, model_of(), beta=0.1).sampler.needs_logps


def test_a_steps_metrics_by_hand():
    objective = objective_of(Grpo, model_of().train())
    made = sampled(objective)
    objective.loss(objective.sampler.model, made)
    means = {name: total / weight for name, (total, weight) in objective.step_metrics().items()}
    words = [len(text.split()) for text in TEXTS]
    length = [max(0, 1 - abs(n - 2) / 2) for n in words]
    form = [float(n <= 1) for n in words]
    assert means["rewards/length"] == pytest.approx(sum(length) / 8)
    assert means["rewards/format"] == pytest.approx(sum(form) / 8)
    rewards = torch.tensor([a + 0.4 * b for a, b in zip(length, form, strict=True)])
    assert means["reward"] == pytest.approx(float(rewards.mean()))
    assert means["reward_std"] == pytest.approx(float(rewards.std()))
    assert means["ended"] == 6 / 8
    assert means["length"] == pytest.approx((sum(map(len, TEXTS)) + 6) / 8)
    assert means["frac_reward_zero_std"] == 0
    assert objective.watch.last[-1]["entropy"] > 0


def test_groups_without_variance_are_counted_and_told():
    objective = objective_of(Grpo, model_of().train())
    notes: list[str] = []
    objective.watch.note = notes.append
    for step in range(5):
        judged = objective.sampler.judge(
            [p for p in prompts() for _ in range(4)], objective.sampler.sample_rollouts(
                [p for p in prompts() for _ in range(4)], (step,), range(8)
            )
        )  # fmt: skip
        judged.rewards_B[:] = torch.tensor([1.0] * 4 + [float(step)] * 4)
        objective.rollouts(judged)
        total, weight = objective.step_metrics()["frac_reward_zero_std"]
        assert (total, weight) == (2, 2)
    assert any("in 100% of the groups" in note for note in notes)


def test_a_process_without_a_prompt_takes_part():
    for method in (Grpo, Rloo):
        objective = objective_of(method, model_of(), model_of(1), beta=0.1)
        assert objective.sample_rollouts([], [], 0, lambda: False) == []


def test_only_neighbours_with_the_whole_prompt_in_common_share_it():
    def row(prompt, answer):
        return Encoded((*prompt, *answer), (*(-100 for _ in prompt), *answer))

    rows = [row((1, 2), (3,)), row((1, 2), (4, 5)), row((1, 2, 3), (6,)), row((1,), (2,)),
            row((1, 2), (7,)), row((1, 2), (7,))]  # fmt: skip
    assert shared_prompts(rows) == [(0, 0), (0, 2), (0, 0), (0, 0), (0, 0), (4, 2)]


@pytest.mark.parametrize(("masked", "uncounted"), [(False, ()), (True, (2, 5))])
def test_an_answer_weighs_its_part_of_the_tokens_that_count(masked, uncounted):
    """`uncounted` are the answers that have no end."""
    objective = objective_of(
        Grpo, model_of(), loss_type="dapo", mask_truncated_completions=masked
    )  # fmt: skip
    made = sampled(objective)
    tokens = sum(len(a.ids) for n, a in enumerate(answers()) if n not in uncounted)
    assert objective.weight(made) == pytest.approx(tokens)
    assert objective.weight(made[:2]) == pytest.approx(tokens * 2 / len(TEXTS))


@pytest.mark.parametrize("method", [Grpo, Rloo])
def test_old_likelihoods_have_a_dropout_of_their_own_on_request(method):
    """As TRL and ms-swift compute them: by the policy in training mode, without gradients."""

    def made_with(asked: bool, seed: int, **options):
        model = model_of().train()
        model.model.embed_tokens.register_forward_hook(
            lambda layer, _, out: torch.nn.functional.dropout(out, 0.3, layer.training)
        )
        options |= {"old_logps_dropout": asked, "disable_dropout": False, "beta": 0.0}
        objective = objective_of(method, model, **options)
        torch.manual_seed(seed)
        rows = sampled(objective, step=1)
        assert model.training
        return objective, model, rows

    for seed in (0, 1):
        objective, model, rows = made_with(True, seed)
        torch.manual_seed(seed)
        expected: list[torch.Tensor] = []
        with torch.no_grad():
            for some in objective.sampler.batches(rows):
                expected.append(objective.sampler.stats(model, some).logps_N)
        torch.testing.assert_close(torch.cat([row.logps for row in rows]), torch.cat(expected))
        noted = objective.loss(model, rows)[1]
        ratio = float(noted["ratio"]) / objective.weight(rows)
        assert ratio != pytest.approx(1, abs=0.01)
        assert all(row.logps.grad_fn is None for row in rows)
    other = made_with(True, 2)[2]
    assert not torch.equal(other[0].logps, rows[0].logps)
    plain = [made_with(False, seed, num_iterations=2)[2] for seed in (0, 1)]
    torch.testing.assert_close(plain[0][0].logps, plain[1][0].logps)
    assert made_with(False, 0)[2][0].logps is None
    asked = objective.sampler.judge(prompts()[:1], answers()[:1], logps=True)
    torch.testing.assert_close(asked.logps[0], plain[0][0].logps)


def test_a_token_far_beyond_token_kl_max_has_no_slope_and_no_overflow():
    """exp(100) is no float32: clamp's slope would be 0 times infinity."""
    objective = objective_of(
        Grpo, model_of(), model_of(), beta=1.0, token_kl_max=10.0, use_bias_correction_kl=False
    )
    made = [replace(row, advantage=0.0, learnt=True) for row in sampled(objective)]
    made = [replace(row, reference=torch.full_like(row.reference, 100.0)) for row in made]
    loss, noted = objective.loss(objective.sampler.model, made)
    loss.backward()
    assert float(noted["kl"]) / objective.weight(made) == pytest.approx(10.0)
    slopes = [p.grad for p in objective.sampler.model.parameters() if p.grad is not None]
    assert slopes
    assert all(bool((slope == 0).all()) for slope in slopes)


def test_dropout_in_old_likelihoods_needs_dropout():
    with pytest.raises(ValueError, match="only with disable_dropout: false"):
        objective_of(Grpo, old_logps_dropout=True)
