"""PPO's objective on likelihoods that are given: its loss and its numbers, by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from llmft_alignments.online.diagnostics import Diagnostics
from llmft_alignments.ppo import objective as module
from llmft_alignments.ppo.config import PpoConfig
from llmft_alignments.ppo.objective import PpoObjective
from llmft_alignments.ppo.rollouts import Judged, Rollout

from llmft.api import Answer, Encoded

RATIOS = (1.5, 0.5, 1.1, 1.5)
ADVANTAGES = (2.0, -3.0, 1.0, -1.0)
OLD_VALUES, VALUES, RETURNS = (0.0, 1.0, 2.0, 3.0), (0.5, 1.1, 1.0, 3.0), (1.0, 0.0, 2.0, 3.5)
ENTROPIES = (0.3, 0.6, 0.9, 1.2)


def objective_of(**options) -> PpoObjective:
    config = PpoConfig.model_validate({"method": "ppo", "reward_model": "r", **options})
    return PpoObjective(config, None, Diagnostics(print), seed=5)


def loss_of(monkeypatch, **options) -> tuple[float, dict[str, float], dict]:
    """Return the loss of two answers of two tokens, what is noted, and how the model was asked."""
    asked: dict = {}

    def token_stats(model, batch, temperature, *, entropy_gradient, nuclei):
        asked.update(temperature=temperature, entropy_gradient=entropy_gradient, nuclei=nuclei)
        logps = torch.tensor(RATIOS).log()
        return SimpleNamespace(
            logps_N=logps, entropy_N=torch.tensor(ENTROPIES), hidden_ND=torch.tensor(VALUES)
        )

    monkeypatch.setattr(module, "token_stats", token_stats)
    monkeypatch.setattr(module, "values", lambda model, hidden: hidden)
    columns = [torch.tensor(c).split(2) for c in ((0.0,) * 4, OLD_VALUES, ADVANTAGES, RETURNS)]
    batch = [
        Rollout((1, 2, 3), (-100, 2, 3), "row", *parts) for parts in zip(*columns, strict=True)
    ]
    made = objective_of(**options)
    assert made.weight(batch) == 4
    loss, noted = made.loss(None, batch)
    return float(loss), noted, asked


def policy_by_hand(cliprange: float) -> float:
    terms = []
    for ratio, advantage in zip(RATIOS, ADVANTAGES, strict=True):
        cut = min(max(ratio, 1 - cliprange), 1 + cliprange)
        terms.append(-min(ratio * advantage, cut * advantage))
    return sum(terms)


def value_by_hand(cliprange_value: float) -> float:
    total = 0.0
    for value, old, target in zip(VALUES, OLD_VALUES, RETURNS, strict=True):
        near = min(max(value, old - cliprange_value), old + cliprange_value)
        total += 0.5 * max((value - target) ** 2, (near - target) ** 2)
    return total


@pytest.mark.parametrize(("cliprange", "cut"), [(0.2, 2), (0.05, 3), (0.4, 2), (0.7, 0)])
def test_cliprange_bounds_the_ratio(cliprange, cut, monkeypatch):
    loss, noted, _ = loss_of(monkeypatch, cliprange=cliprange, vf_coef=0.0)
    assert loss == pytest.approx(policy_by_hand(cliprange), rel=1e-5)
    assert noted["clipfrac"] == cut
    assert noted["policy_loss"] == pytest.approx(loss, rel=1e-5)
    assert noted["ratio"] == pytest.approx(sum(RATIOS), rel=1e-5)
    by_k3 = sum(ratio - 1 - math.log(ratio) for ratio in RATIOS)
    assert noted["approx_kl"] == pytest.approx(by_k3, rel=1e-4)


@pytest.mark.parametrize("cliprange_value", [0.2, 0.05, 0.7, 2.0])
def test_cliprange_value_bounds_the_values(cliprange_value, monkeypatch):
    loss, noted, _ = loss_of(monkeypatch, cliprange_value=cliprange_value, vf_coef=0.3)
    expected = value_by_hand(cliprange_value)
    assert noted["value_loss"] == pytest.approx(expected, rel=1e-5)
    assert loss == pytest.approx(policy_by_hand(0.2) + 0.3 * expected, rel=1e-5)
    assert noted["clipfrac_value"] == {0.2: 1, 0.05: 1, 0.7: 0, 2.0: 0}[cliprange_value]


def test_the_bonus_of_the_entropy_is_taken_off_and_costs_a_gradient_only_where_asked(monkeypatch):
    plain, _, asked = loss_of(monkeypatch)
    assert asked == {"temperature": 0.7, "entropy_gradient": False, "nuclei": None}
    with_bonus, _, asked = loss_of(monkeypatch, entropy_coef=0.25, temperature=1.3)
    assert asked == {"temperature": 1.3, "entropy_gradient": True, "nuclei": None}
    assert with_bonus == pytest.approx(plain - 0.25 * sum(ENTROPIES), rel=1e-5)


@pytest.mark.parametrize(
    ("target_kl", "approx_kl", "goes_on"),
    [(None, 1e9, True), (0.1, 0.1499, True), (0.1, 0.1501, False), (2.0, 2.9, True),
     (2.0, 3.1, False)],
)  # fmt: skip
def test_a_steps_updates_end_at_one_and_a_half_times_target_kl(target_kl, approx_kl, goes_on):
    objective = objective_of(target_kl=target_kl)
    assert objective.should_continue({"approx_kl": approx_kl}) is goes_on


def test_each_epoch_takes_every_answer_once_in_an_order_of_its_own():
    objective = objective_of(num_ppo_epochs=3, num_mini_batches=4)
    parts = list(objective.updates(10, step=2))
    assert [len(part) for part in parts] == [3, 3, 2, 2] * 3
    epochs = [[i for part in parts[at : at + 4] for i in part] for at in (0, 4, 8)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert list(objective.updates(10, step=2)) == parts
    assert list(objective.updates(10, step=3)) != parts
    few = list(objective_of(num_ppo_epochs=1, num_mini_batches=4).updates(2, step=0))
    assert sorted(map(len, few)) == [1, 1], "no minibatch is empty"


def judged(scores=(2.0, -1.0), ended=(True, False), gap=0.5) -> Judged:
    """Two answers, of three tokens and of two, each token `gap` likelier than to the reference."""
    lengths = (3, 2)
    return Judged(
        [Encoded((9,) * (n + 1), (-100, *(9,) * n), "row") for n in lengths],
        [Answer((9,) * n, ended=e) for n, e in zip(lengths, ended, strict=True)],
        ["", ""],
        logps_N=torch.full((5,), -1.0),
        entropy_N=torch.tensor([0.1, 0.2, 0.3, 0.4, 1.0]),
        values_N=torch.tensor([0.1, 0.4, 0.9, -0.3, 0.5]),
        reference_N=torch.full((5,), -1.0 - gap),
        row_N=torch.tensor([0, 0, 0, 1, 1]),
        scores_B=torch.tensor(scores),
    )


def step_of(**options) -> tuple[PpoObjective, list[Rollout], dict[str, float]]:
    objective = objective_of(**options)
    made = objective.rollouts(judged())
    means = {k: value / weight for k, (value, weight) in objective.step_metrics().items()}
    return objective, made, means


PLAIN = {"center_values": False, "whiten_advantages": False, "gamma": 1.0, "lam": 1.0}


def returns(made: list[Rollout]) -> list[float]:
    return torch.cat([one.returns for one in made]).tolist()


def test_each_tokens_return_is_the_score_less_the_penalty_of_what_is_left():
    _, made, means = step_of(kl_coef=0.2, **PLAIN)  # a penalty of 0.1 a token
    assert returns(made) == pytest.approx([1.7, 1.8, 1.9, -1.2, -1.1])
    assert means["kl"] == pytest.approx(0.5 * 5 / 2)
    assert means["reward"] == means["score"] == pytest.approx(0.5)
    assert means["rlhf_reward"] == pytest.approx(0.5 - 0.2 * 1.25)
    assert (means["length"], means["ended"]) == (2.5, 0.5)
    assert means["entropy"] == pytest.approx(0.4)
    assert means["kl_coef"] == 0.2


def test_gamma_discounts_and_lambda_cuts_the_future():
    _, made, _ = step_of(kl_coef=0.0, **PLAIN | {"gamma": 0.5})
    assert returns(made) == pytest.approx([0.5, 1.0, 2.0, -0.5, -1.0])
    _, made, _ = step_of(kl_coef=0.0, **PLAIN | {"gamma": 0.5, "lam": 0.0})
    assert returns(made) == pytest.approx([0.2, 0.45, 2.0, 0.25, -1.0])


def test_k3_is_the_penalty_where_it_is_named_and_never_what_is_told():
    _, made, means = step_of(kl_coef=0.2, kl_estimator="k3", **PLAIN)
    penalty = 0.2 * (math.exp(-0.5) - 1 + 0.5)
    last = [2.0 - penalty, -1.0 - penalty]
    assert [returns(made)[2], returns(made)[4]] == pytest.approx(last, rel=1e-4)
    assert means["kl"] == pytest.approx(1.25)


def test_scores_pay_for_a_missing_end_are_cut_and_scaled_in_that_order():
    _, made, means = step_of(kl_coef=0.0, missing_eos_penalty=0.75, **PLAIN)
    assert returns(made) == pytest.approx([2, 2, 2, -1.75, -1.75])
    assert (means["reward"], means["score"]) == pytest.approx((0.5, 0.125))
    _, made, _ = step_of(kl_coef=0.0, reward_clip=1.5, **PLAIN)
    assert returns(made) == pytest.approx([1.5, 1.5, 1.5, -1, -1])
    # The standard deviation of 2 and -1 is the root of 4.5, with n - 1.
    _, made, _ = step_of(kl_coef=0.0, reward_scaling=True, reward_clip=0.5, **PLAIN)
    assert returns(made) == pytest.approx([0.5] * 3 + [-1 / math.sqrt(4.5)] * 2)


def test_the_scale_of_scores_is_that_of_all_steps_so_far():
    objective = objective_of(reward_scaling=True, kl_coef=0.0, **PLAIN)
    objective.rollouts(judged())
    again = objective_of(reward_scaling=True, kl_coef=0.0, **PLAIN)
    again.restore(objective.state())
    made = again.rollouts(judged(scores=(5.0, 6.0)))
    seen = [2.0, -1.0, 5.0, 6.0]
    spread = math.sqrt(sum((x - 3) ** 2 for x in seen) / 3)
    assert returns(made)[0] == pytest.approx(5 / spread)


def test_whitened_rewards_have_variance_1_and_keep_their_mean():
    _, made, _ = step_of(kl_coef=0.2, whiten_rewards=True, **PLAIN | {"gamma": 1e-9})
    rewards = [-0.1, -0.1, 1.9, -0.1, -1.1]
    mean = sum(rewards) / 5
    spread = math.sqrt(sum((x - mean) ** 2 for x in rewards) / 4)
    expected = [(x - mean) / spread + mean for x in rewards]
    assert returns(made) == pytest.approx(expected, abs=1e-5)


def test_whitened_advantages_have_mean_0_and_variance_1():
    _, made, _ = step_of(**PLAIN | {"whiten_advantages": True})
    advantages = torch.cat([one.advantages for one in made])
    assert float(advantages.mean()) == pytest.approx(0, abs=1e-6)
    assert float(advantages.var()) == pytest.approx(1, abs=1e-5)


def test_the_explained_variance_is_that_of_the_values_that_were_judged():
    _, made, means = step_of(kl_coef=0.2, **PLAIN)
    target = torch.tensor(returns(made))
    left = target - judged().values_N
    assert means["explained_variance"] == pytest.approx(
        1 - float(left.var()) / float(target.var()), rel=1e-4
    )


@pytest.mark.parametrize(("target", "moved"), [(0.5, 1.2), (100.0, 0.8), (1.3, 1 - 0.05 / 1.3)])
def test_the_adaptive_coefficient_follows_the_divergence_of_the_step(target, moved):
    """Ziegler et al. 2019, section 2.2: here 2 answers of a horizon of 4 move it half as far."""
    objective, _, means = step_of(adap_kl_ctrl=True, target=target, horizon=4, kl_coef=0.2)
    assert means["kl_coef"] == 0.2, "what the step has paid"
    assert objective.kl_coef == pytest.approx(0.2 * (1 + (moved - 1) / 2))
    again = objective_of(adap_kl_ctrl=True, target=target, horizon=4, kl_coef=0.2)
    again.restore(objective.state())
    assert again.kl_coef == objective.kl_coef
