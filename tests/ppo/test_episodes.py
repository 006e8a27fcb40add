"""What a step makes of judged answers: advantages and returns of each token."""

from __future__ import annotations

import pytest
import torch
from llmft_alignments.ppo_config import PpoConfig
from llmft_alignments.ppo_episodes import Judged
from llmft_alignments.ppo_objective import PpoObjective
from llmft_alignments.ppo_watch import Watch

from llmft.api import Answer, Encoded

VALUES = torch.tensor([0.1, 0.4, 0.9, -0.3, 0.5])
OPTIONS = {"reward_model": "r", "kl_coef": 0.0, "lam": 0.5, "whiten_advantages": False}


def episodes(values_N: torch.Tensor, **options):
    """Return what becomes of two answers, of three tokens and of two, scored 2 and 1."""
    rows = [Encoded((9,) * (n + 1), (-100, *(9,) * n), "row") for n in (3, 2)]
    judged = Judged(
        rows,
        [Answer((9,) * n, ended=True) for n in (3, 2)],
        ["", ""],
        logps_N=torch.zeros(5),
        entropy_N=torch.zeros(5),
        values_N=values_N,
        reference_N=torch.zeros(5),
        row_N=torch.tensor([0, 0, 0, 1, 1]),
        scores_B=torch.tensor([2.0, 1.0]),
    )
    config = PpoConfig.model_validate({"method": "ppo", **OPTIONS, **options})
    return PpoObjective(config, None, Watch(print), seed=0).episodes(judged)


def column(made, name: str) -> list[float]:
    return torch.cat([getattr(episode, name) for episode in made]).tolist()


def test_values_are_centred_by_hand():
    # What follows is 2, 2, 2, 1, 1: 8 in all, where the values say 1.6; 1.28 a token.
    made = episodes(VALUES)
    assert column(made, "values") == pytest.approx([1.38, 1.68, 2.18, 0.98, 1.78])
    last, later = 2 - 2.18, 2.18 - 1.68
    assert column(made, "advantages")[1:3] == pytest.approx([later + 0.5 * last, last])
    assert column(made, "returns")[3:] == pytest.approx([1.78 + 0.5 * (1 - 1.78), 1.0])


def test_values_that_are_behind_as_a_whole_change_no_advantage():
    near, behind = episodes(VALUES), episodes(VALUES - 7)
    for name in ("values", "advantages", "returns"):
        assert column(behind, name) == pytest.approx(column(near, name), abs=1e-5)
    plain = [episodes(v, center_values=False) for v in (VALUES, VALUES - 7)]
    assert column(plain[0], "values") == pytest.approx(VALUES.tolist())
    gaps = [b - a for a, b in zip(*(column(made, "advantages") for made in plain), strict=True)]
    assert gaps == pytest.approx([7 * 0.25, 7 * 0.5, 7, 7 * 0.5, 7]), "by a token's place"
