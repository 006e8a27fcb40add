"""The mathematics of PPO: by hand, by finite differences, and against what it must equal."""

from __future__ import annotations

import math

import pytest
import torch
from llmft_alignments.online import statistics
from llmft_alignments.ppo import maths

ROW_N = torch.tensor([0, 0, 0, 1, 1])


def doubles(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_k1_and_k3_by_hand():
    policy, reference = doubles(-1.0, -2.0), doubles(-1.5, -1.0)
    k1 = maths.kl_estimates(policy, reference, "k1")
    k3 = maths.kl_estimates(policy, reference, "k3")
    assert k1.tolist() == pytest.approx([0.5, -1.0])
    assert k3.tolist() == pytest.approx([math.exp(-0.5) - 1 + 0.5, math.e - 1 - 1.0])


def test_both_estimates_have_the_divergence_as_their_mean_under_the_policy():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    policy, reference = torch.log_softmax(logits, 1)
    divergence = float((policy.exp() * (policy - reference)).sum())
    for name in ("k1", "k3"):
        estimates = maths.kl_estimates(policy, reference, name)
        assert float((policy.exp() * estimates).sum()) == pytest.approx(divergence)
    assert (maths.kl_estimates(policy, reference, "k3") >= 0).all()


def test_the_score_stands_at_the_last_token_and_the_penalty_at_each():
    rewards = maths.token_rewards(doubles(3.0, -1.0), doubles(1, 2, 3, 4, 5), ROW_N, 0.1)
    assert rewards.tolist() == pytest.approx([-0.1, -0.2, 2.7, -0.4, -1.5])
    assert maths.last_tokens(ROW_N).tolist() == [2, 4]


def test_gae_by_hand():
    rewards, values = doubles(1.0, 0.0, 2.0, 0.0, 1.0), doubles(0.5, 1.0, 1.5, 0.2, 0.4)
    gamma, lam = 0.9, 0.8
    d2 = 2.0 - 1.5
    d1 = 0.0 + 0.9 * 1.5 - 1.0
    d0 = 1.0 + 0.9 * 1.0 - 0.5
    a2, a1 = d2, d1 + 0.72 * d2
    a0 = d0 + 0.72 * a1
    b1 = 1.0 - 0.4
    b0 = 0.9 * 0.4 - 0.2 + 0.72 * b1
    found = maths.gae(rewards, values, ROW_N, gamma, lam)
    assert found.tolist() == pytest.approx([a0, a1, a2, b0, b1])


def test_gae_with_lambda_1_is_the_return_less_the_value_and_with_0_the_step():
    generator = torch.Generator().manual_seed(1)
    rewards, values = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    whole = maths.gae(rewards, values, ROW_N, 1.0, 1.0)
    later = [float(rewards[i:3].sum() - values[i]) for i in range(3)]
    later += [float(rewards[i:5].sum() - values[i]) for i in (3, 4)]
    assert whole.tolist() == pytest.approx(later)
    after = doubles(*values[1:3].tolist(), 0.0, float(values[4]), 0.0)
    step = maths.gae(rewards, values, ROW_N, 0.7, 0.0)
    torch.testing.assert_close(step, rewards + 0.7 * after - values)


def test_no_answers_have_no_advantages():
    none = torch.zeros(0)
    assert maths.gae(none, none, none.long(), 0.9, 0.9).shape == (0,)
    assert maths.token_rewards(none, none, none.long(), 0.1).shape == (0,)


def test_no_token_of_an_answer_reaches_another():
    rewards, values = torch.randn(2, 5, generator=torch.Generator().manual_seed(2))
    before = maths.gae(rewards, values, ROW_N, 0.9, 0.9)
    rewards[3:] += 100
    after = maths.gae(rewards, values, ROW_N, 0.9, 0.9)
    assert torch.equal(before[:3], after[:3])
    assert not torch.equal(before[3:], after[3:])


def test_whitening_gives_mean_0_and_variance_1_over_all_processes():
    x = torch.randn(40, generator=torch.Generator().manual_seed(3)) * 3 + 5
    sums = statistics.power_sums(x[:15]) + statistics.power_sums(x[15:])
    whole = statistics.whiten(x, sums)
    assert float(whole.mean()) == pytest.approx(0, abs=1e-6)
    assert float(whole.var()) == pytest.approx(1, rel=1e-5)
    kept = statistics.whiten(x, sums, shift_mean=False)
    assert float(kept.mean()) == pytest.approx(float(x.mean()), rel=1e-5)
    assert whole.dtype == torch.float32


def test_one_value_alone_whitens_to_a_finite_number():
    x = torch.tensor([3.0])
    assert torch.isfinite(statistics.whiten(x, statistics.power_sums(x))).all()


def test_equal_numbers_have_no_variance_whatever_rounding_leaves():
    for value in (0.1, 0.3, 1 / 3, 0.7, 1e6 / 3):
        for count in (7, 21, 63, 100):
            x = torch.full((count,), value)
            sums = statistics.power_sums(x)
            assert float(statistics.moments(sums)[1]) == 0.0, (value, count)
            assert maths.explained_variance(statistics.power_sums(x / 3), sums) == 0.0


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.5, 2.0, -2.4, True),  # it went up far enough
        (1.5, -2.0, 3.0, False),  # it must come down
        (0.5, 2.0, -1.0, False),
        (0.5, -2.0, 1.6, True),
    ],
)
def test_the_clipped_policy_loss_by_hand(ratio, advantage, loss, clipped):
    old = doubles(-1.0)
    found, where = maths.policy_loss(old + math.log(ratio), old, doubles(advantage), 0.2)
    assert float(found) == pytest.approx(loss)
    assert bool(where) is clipped


def test_values_that_stay_within_their_range_are_never_called_clipped():
    generator = torch.Generator().manual_seed(0)
    near, old, returns = (0.19 * (torch.rand(1000, generator=generator) - 0.5) for _ in range(3))
    assert not maths.value_loss(near, old, returns, 0.2)[1].any()


@pytest.mark.parametrize(
    ("value", "target", "loss", "clipped"),
    [(1.1, 2.0, 0.405, False), (1.5, 2.0, 0.32, True), (1.5, 0.0, 1.125, False)],
)
def test_the_clipped_value_loss_by_hand(value, target, loss, clipped):
    found, where = maths.value_loss(doubles(value), doubles(1.0), doubles(target), 0.2)
    assert float(found) == pytest.approx(loss)
    assert bool(where) is clipped


def test_the_losses_gradients_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(4)
    logps, old, advantages, values, old_values, returns = torch.randn(
        6, 5, generator=generator, dtype=torch.float64
    )
    logps = (old + 0.3 * logps).requires_grad_()
    values = values.requires_grad_()

    def policy(x):
        return maths.policy_loss(x, old, advantages, 0.2)[0]

    def value(x):
        return maths.value_loss(x, old_values, returns, 0.2)[0]

    def penalty(x):
        return maths.approx_kl(x, old)

    for function, x in ((policy, logps), (value, values), (penalty, logps)):
        assert torch.autograd.gradcheck(function, (x,))


def test_with_ratio_1_the_gradient_is_the_policy_gradient():
    """-A grad log pi, with respect to the logits, whatever the clipping."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(6, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    taken = torch.randint(9, (6,), generator=generator)
    advantages = torch.randn(6, generator=generator, dtype=torch.float64)
    logps = torch.log_softmax(logits, 1).gather(1, taken[:, None]).squeeze(1)
    loss, where = maths.policy_loss(logps, logps.detach(), advantages, 0.2)
    (found,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(-(advantages * logps).sum(), logits)
    torch.testing.assert_close(found, wanted)
    assert not where.any()
    assert maths.approx_kl(logps, logps).abs().max() == 0


def test_the_adaptive_coefficient_follows_the_divergence_and_never_by_more_than_a_fifth():
    assert maths.adapted_kl_coef(0.1, 6.0, 6.0, 256, 10_000) == pytest.approx(0.1)
    assert maths.adapted_kl_coef(0.1, 600.0, 6.0, 1000, 10_000) == pytest.approx(0.1 * 1.02)
    assert maths.adapted_kl_coef(0.1, 0.0, 6.0, 1000, 10_000) == pytest.approx(0.1 * 0.98)
    # More answers in a step than in the horizon: the pull must not turn into a push.
    assert maths.adapted_kl_coef(0.1, 0.0, 6.0, 1024, 100) == pytest.approx(0.1 * 0.8)


def test_explained_variance_is_1_for_right_values_and_0_for_constant_ones():
    returns = torch.randn(30, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    sums = statistics.power_sums(returns)
    assert maths.explained_variance(
        statistics.power_sums(returns - returns), sums
    ) == pytest.approx(1)
    assert maths.explained_variance(statistics.power_sums(returns - 3), sums) == pytest.approx(0)
    same = statistics.power_sums(torch.ones(4))
    assert maths.explained_variance(same, same) == 0.0
