"""The objectives of preferences on likelihoods that are given: losses and numbers, by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from llmft_alignments import dpo as module
from llmft_alignments import reward as reward_module
from llmft_alignments.dpo import Dpo, DpoItem, DpoObjective
from llmft_alignments.pairs import HeldOut
from llmft_alignments.reward import Reward, RewardObjective
from llmft_alignments.reward.report import calibration, measured

from llmft.api import Encoded, EncodedPair
from tests.composed import composed

ROW = Encoded((1, 2, 3), (-100, 2, 3), "row")
POLICY = torch.tensor([[-1.0, -4.0], [-3.0, -2.0], [-2.5, -2.5]])
REFERENCE = [(-2.0, -3.0), (-1.0, -1.0), (-2.0, -2.0)]
"""Ratios of 1 and -1, of -2 and -1, and a tie of -0.5 and -0.5."""


def loss_of(monkeypatch, **options) -> tuple[float, dict[str, float]]:
    monkeypatch.setattr(module, "pair_logps", lambda model, batch, share: POLICY)
    items = [DpoItem(ROW, ROW, 0, None, "row", reference=reference) for reference in REFERENCE]
    config = Dpo.Config.model_validate({"method": "dpo", **options})
    objective = DpoObjective(config, share=False)
    assert objective.weight(items) == 3
    loss, noted = objective.loss(None, items)
    return float(loss), noted


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_a_pair_that_is_a_tie_is_no_pair_that_was_got_right(monkeypatch):
    loss, noted = loss_of(monkeypatch, beta=0.3)
    assert loss == pytest.approx(softplus(-0.3 * 2) + softplus(0.3) + math.log(2), rel=1e-5)
    assert noted["rewards/accuracies"] == 1
    assert noted["rewards/chosen"] == pytest.approx(0.3 * (1 - 2 - 0.5))
    assert noted["rewards/rejected"] == pytest.approx(0.3 * (-1 - 1 - 0.5))
    assert noted["rewards/margins"] == pytest.approx(0.3 * (2 - 1))
    assert (noted["logps/chosen"], noted["logps/rejected"]) == (-6.5, -8.5)
    assert noted["tokens"] == 3 * 6


def test_several_losses_add_up_with_their_weights(monkeypatch):
    one = loss_of(monkeypatch, loss_type=["hinge"])[0]
    other = loss_of(monkeypatch, loss_type=["ipo"])[0]
    both = loss_of(monkeypatch, loss_type=["hinge", "ipo"], loss_weights=[0.5, 3.0])[0]
    assert both == pytest.approx(0.5 * one + 3 * other, rel=1e-5)
    assert loss_of(monkeypatch, loss_type=["hinge", "ipo"])[0] == pytest.approx(one + other)


def held_out_context():
    """What `HeldOut` asks of a stage, and what it tells."""
    told: list[tuple[str, int, int]] = []
    return composed(
        shares_prompts=False,
        model=torch.nn.Linear(1, 1),
        train=SimpleNamespace(per_device_eval_batch_size=2),
        held_out=lambda: ["row"] * 3,
        encode_pairs=lambda rows: [EncodedPair(ROW, ROW, 0, None, "row") for _ in rows],
        progress=lambda phase, done, of: told.append((phase, done, of)),
        told=told,
    )


def test_ties_of_held_out_pairs_count_as_wrong(monkeypatch):
    import llmft_alignments.pairs as pairs_module

    left = [POLICY[:2], POLICY[2:]]
    monkeypatch.setattr(pairs_module, "pair_logps", lambda model, some, share: left.pop(0))
    context = held_out_context()
    found = HeldOut().preferences(context)
    assert found["preference_accuracy"] == [1.0, 0.0, 0.0]
    assert found["preference_margin"] == pytest.approx([3, -1, 0])
    assert context.told == [("judge pairs", 0, 3), ("judge pairs", 2, 3), ("judge pairs", 3, 3)]
    assert context.models.model.training, "the model is given back as it was"


REWARDS = torch.tensor([[2.0, 0.5], [1.0, 1.5], [0.25, 0.25]])


@pytest.mark.parametrize("center", [0.0, 0.3])
@pytest.mark.parametrize("use_margin", [False, True])
def test_the_reward_models_loss_and_its_ties_by_hand(center, use_margin, monkeypatch):
    monkeypatch.setattr(reward_module, "pair_rewards", lambda model, pairs, share: REWARDS)
    config = Reward.Config(
        method="reward", center_rewards_coefficient=center, use_margin=use_margin
    )
    margins = (1.0, 0.5, 2.0)
    pairs = [EncodedPair(ROW, ROW, 0, margin, "row") for margin in margins]
    loss, noted = RewardObjective(config, share=False).loss(None, pairs)
    gaps = [1.5, -0.5, 0.0]
    expected = sum(
        softplus(-(gap - margin * use_margin)) + center * total**2
        for gap, margin, total in zip(gaps, margins, (2.5, 2.5, 0.5), strict=True)
    )
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert noted == {"accuracy": 1.0, "margin": 1.0, "mean_reward": 2.75, "tokens": 18.0}


def test_the_reports_numbers_by_hand():
    found = measured(REWARDS)
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["margin"] == pytest.approx(1 / 3)
    assert found["reward_mean"] == pytest.approx(5.5 / 6)
    mean = 5.5 / 6
    squares = sum((float(x) - mean) ** 2 for x in REWARDS.flatten()) / 6
    assert found["reward_std"] == pytest.approx(math.sqrt(squares))
    error, bins = calibration(torch.tensor([1.5, -0.5, 0.0]))
    sure = [0.5, 1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(-1.5))]
    assert [one["confidence"] for one in bins] == pytest.approx(sure, rel=1e-5)
    assert [one["right"] for one in bins] == [0, 0, 1]
    assert error == pytest.approx((sure[0] + sure[1] + 1 - sure[2]) / 3, rel=1e-5)
    assert found["calibration_error"] == pytest.approx(error, rel=1e-5)
