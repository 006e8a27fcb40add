"""Each loss by hand, against finite differences, and against another way to write it in float64."""

from __future__ import annotations

import math

import pytest
import torch
from llmft_alignments import preference_maths as losses
from llmft_alignments.dpo.losses import DPO_LOSSES, DpoOptions, PairLogps, dpo_loss

POLICY = torch.tensor([[-3.0, -2.0], [-1.5, -4.0], [-6.0, -5.5]], dtype=torch.float64)
REFERENCE = torch.tensor([[-2.5, -2.5], [-2.0, -3.0], [-7.0, -5.0]], dtype=torch.float64)
TOKENS = torch.tensor([[2.0, 4.0], [1.0, 3.0], [5.0, 5.0]], dtype=torch.float64)
LOGPS = PairLogps(POLICY, REFERENCE, TOKENS)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_hand(name: str, won: float, lost: float, lengths: tuple[float, float], o: DpoOptions):
    """One pair's loss in plain Python; won, lost: the log-ratios."""
    gap, beta, e = won - lost, o.beta, o.label_smoothing
    mean_gap = won / lengths[0] - lost / lengths[1]
    log_win, log_lose = math.log(sigma(beta * gap)), math.log(sigma(-beta * gap))
    return {
        "sigmoid": -(1 - e) * log_win - e * log_lose,
        "sigmoid_norm": -math.log(sigma(beta * mean_gap)),
        "hinge": max(0.0, 1 - beta * gap),
        "ipo": (mean_gap - 1 / (2 * beta)) ** 2,
        "exo_pair": sigma(beta * gap) * (log_win - math.log(1 - e))
        + sigma(-beta * gap) * (log_lose - math.log(e)),
        "nca_pair": -math.log(sigma(beta * won))
        - (math.log(sigma(-beta * won)) + math.log(sigma(-beta * lost))) / 2,
        "robust": (-(1 - e) * log_win + e * log_lose) / (1 - 2 * e),
        "bco_pair": -math.log(sigma(beta * won)) - math.log(sigma(-beta * lost)),
        "sppo_hard": (won - 1 / (2 * beta)) ** 2 + (lost + 1 / (2 * beta)) ** 2,
        "apo_zero": 1 - sigma(beta * won) + sigma(beta * lost),
        "apo_down": sigma(beta * won) + 1 - sigma(beta * gap),
        "discopop": -log_win * (1 - sigma(beta * gap / o.discopop_tau))
        + math.exp(-beta * gap) * sigma(beta * gap / o.discopop_tau),
    }[name]


@pytest.mark.parametrize("name", sorted(set(DPO_LOSSES) - {"aot", "aot_unpaired", "sft"}))
def test_each_dpo_loss_is_what_a_hand_computes(name):
    options = DpoOptions(beta=0.3, label_smoothing=0.1)
    found = dpo_loss(name, LOGPS, options)
    for row in range(3):
        won, lost = (POLICY - REFERENCE)[row].tolist()
        expected = by_hand(name, won, lost, tuple(TOKENS[row].tolist()), options)
        assert float(found[row]) == pytest.approx(expected, abs=1e-12)


def test_the_losses_over_a_batch_are_what_a_hand_computes():
    options = DpoOptions(beta=0.3)
    sft = dpo_loss("sft", LOGPS, options)
    assert sft.tolist() == pytest.approx([(3.0 + 1.5 + 6.0) / 8] * 3)
    # Margins: policy -1, 2.5, -.5; reference 0, 1, -2; sorted -1, -.5, 2.5 and -2, 0, 1.
    gaps = [1.0, -0.5, 1.5]
    expected = [-math.log(sigma(0.3 * gap)) for gap in gaps]
    assert dpo_loss("aot", LOGPS, options).tolist() == pytest.approx(expected)
    # Ratios: chosen -.5, .5, 1 (sorted so); rejected .5, -1, -.5, sorted -1, -.5, .5.
    expected = [-math.log(sigma(0.3 * gap)) for gap in (0.5, 1.0, 0.5)]
    assert dpo_loss("aot_unpaired", LOGPS, options).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", sorted(DPO_LOSSES))
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js_divergence",
                                        "alpha_divergence"])  # fmt: skip
def test_each_dpo_gradient_is_the_finite_difference(name, divergence):
    options = DpoOptions(beta=0.3, label_smoothing=0.1, f_divergence_type=divergence)

    def mean(policy_B2):
        return dpo_loss(name, PairLogps(policy_B2, REFERENCE, TOKENS), options).mean()

    policy = POLICY.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(mean, (policy,), eps=1e-6, atol=1e-7)


def test_equal_policies_start_at_ln_2():
    same = PairLogps(REFERENCE, REFERENCE, TOKENS)
    for name in ("sigmoid", "sigmoid_norm", "aot", "aot_unpaired"):
        assert dpo_loss(name, same, DpoOptions()).tolist() == pytest.approx([math.log(2)] * 3)


def test_swapping_the_answers_swaps_the_sign_of_the_gap():
    swapped = PairLogps(POLICY.flip(1), REFERENCE.flip(1), TOKENS.flip(1))
    options = DpoOptions(beta=0.3)
    difference = dpo_loss("sigmoid", swapped, options) - dpo_loss("sigmoid", LOGPS, options)
    gap = (POLICY - REFERENCE)[:, 0] - (POLICY - REFERENCE)[:, 1]
    torch.testing.assert_close(difference, 0.3 * gap)  # -log s(-x) + log s(x) = x
    torch.testing.assert_close(
        losses.log_odds_ratio(POLICY.flip(1)), -losses.log_odds_ratio(POLICY)
    )


def test_bradley_terry_by_hand():
    rewards = torch.tensor([[1.0, -0.5], [0.2, 0.7]], dtype=torch.float64)
    margin = torch.tensor([0.5, 0.0], dtype=torch.float64)
    expected = [-math.log(sigma(1.0)) + 0.01 * 0.25, -math.log(sigma(-0.5)) + 0.01 * 0.81]
    found = losses.bradley_terry_loss(rewards, margin, 0.01)
    assert found.tolist() == pytest.approx(expected)
    plain = losses.bradley_terry_loss(rewards)
    assert plain.tolist() == pytest.approx([-math.log(sigma(1.5)), -math.log(sigma(-0.5))])
    leaf = rewards.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda r: losses.bradley_terry_loss(r, margin, 0.01).sum(), (leaf,)
    )


def test_orpo_by_hand():
    """Two tokens of likelihood 1/2 against one of 1/4: odds 1 over 1/3."""
    mean_logps = torch.tensor([[math.log(0.5), math.log(0.25)]], dtype=torch.float64)
    nll = torch.tensor([math.log(2)], dtype=torch.float64)
    ratio = math.log(3)
    assert float(losses.log_odds_ratio(mean_logps)) == pytest.approx(ratio)
    expected = math.log(2) - 0.5 * math.log(sigma(ratio))
    assert float(losses.orpo_loss(nll, mean_logps, 0.5)) == pytest.approx(expected)


@pytest.mark.parametrize("x", [-1.2e-7, -1e-6, -1e-3, -0.3, -math.log(2), -0.7, -5.0, -80.0])
def test_log1mexp_is_right_near_zero_and_far_from_it(x):
    exact = float(torch.log(-torch.expm1(torch.tensor(x, dtype=torch.float64))))
    single = torch.tensor(x, requires_grad=True)
    found = losses.log1mexp(single)
    assert float(found.detach()) == pytest.approx(exact, rel=2e-6, abs=1e-30)
    found.backward()
    expected = -math.exp(x) / -math.expm1(x)
    assert float(single.grad) == pytest.approx(expected, rel=2e-6, abs=1e-30)


def test_orpo_stays_finite_where_an_answer_is_certain_or_impossible():
    extreme = torch.tensor([[0.0, -1e4], [-1e-9, -1e-9]], requires_grad=True)
    loss = losses.orpo_loss(-extreme[:, 0], extreme, 0.1).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(extreme.grad).all()


@pytest.mark.parametrize("name", sorted(DPO_LOSSES))
def test_float32_agrees_with_float64(name):
    options = DpoOptions(beta=0.3, label_smoothing=0.1)
    single = PairLogps(POLICY.float(), REFERENCE.float(), TOKENS.float())
    found = dpo_loss(name, single, options)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), dpo_loss(name, LOGPS, options), atol=2e-6, rtol=2e-6)


def test_the_penalty_is_zero_at_the_start_and_grows_both_ways():
    start = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64)
    assert losses.k3_divergence(start, start).tolist() == [0.0, 0.0, 0.0]
    moved = torch.tensor([-1.5, -1.0, -0.5], dtype=torch.float64, requires_grad=True)
    found = losses.k3_divergence(moved, start)
    assert found.tolist() == pytest.approx([math.exp(0.5) - 1.5, math.exp(-1.0), 0.0])
    assert torch.autograd.gradcheck(lambda x: losses.k3_divergence(x, start).sum(), (moved,))
