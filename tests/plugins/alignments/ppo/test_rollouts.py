"""What a step makes of judged answers: advantages and returns of each token."""

from __future__ import annotations

import statistics
from types import SimpleNamespace

import pytest
import torch
from llmft_alignments.online.diagnostics import Diagnostics
from llmft_alignments.online.scoring import Scorer
from llmft_alignments.online.statistics import power_sums
from llmft_alignments.ppo.config import PpoConfig
from llmft_alignments.ppo.objective import PpoObjective
from llmft_alignments.ppo.rollouts import Judged

from llmft.api import Answer, DataError, Encoded, EncodedPrompt, RewardConfig, RewardFunction
from llmft.modeling.tiny_models import tiny_tokenizer

VALUES = torch.tensor([0.1, 0.4, 0.9, -0.3, 0.5])
OPTIONS = {"reward_model": "r", "kl_coef": 0.0, "lam": 0.5, "whiten_advantages": False}


def rollouts(values_N: torch.Tensor, **options):
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
    return PpoObjective(config, None, Diagnostics(print), seed=0).rollouts(judged)


def column(made, name: str) -> list[float]:
    return torch.cat([getattr(episode, name) for episode in made]).tolist()


def test_values_are_centred_by_hand():
    # What follows is 2, 2, 2, 1, 1: 8 in all, where the values say 1.6; 1.28 a token.
    made = rollouts(VALUES)
    assert column(made, "values") == pytest.approx([1.38, 1.68, 2.18, 0.98, 1.78])
    last, later = 2 - 2.18, 2.18 - 1.68
    assert column(made, "advantages")[1:3] == pytest.approx([later + 0.5 * last, last])
    assert column(made, "returns")[3:] == pytest.approx([1.78 + 0.5 * (1 - 1.78), 1.0])


def test_values_that_are_behind_as_a_whole_change_no_advantage():
    near, behind = rollouts(VALUES), rollouts(VALUES - 7)
    for name in ("values", "advantages", "returns"):
        assert column(behind, name) == pytest.approx(column(near, name), abs=1e-5)
    plain = [rollouts(v, center_values=False) for v in (VALUES, VALUES - 7)]
    assert column(plain[0], "values") == pytest.approx(VALUES.tolist())
    gaps = [b - a for a, b in zip(*(column(made, "advantages") for made in plain), strict=True)]
    assert gaps == pytest.approx([7 * 0.25, 7 * 0.5, 7, 7 * 0.5, 7]), "by a token's place"


def test_scores_that_are_all_the_same_are_not_scaled_by_what_rounding_leaves():
    sums = power_sums(torch.full((63,), 0.1))
    objective = PpoObjective(
        PpoConfig(method="ppo", reward_model="r"), None, Diagnostics(print), seed=0
    )
    assert objective._spread(sums) == 1.0


@pytest.mark.parametrize("reward", [float("inf"), None, "good"])
def test_a_reward_that_is_no_number_is_an_error_that_names_it(reward):
    class Odd(RewardFunction[RewardConfig]):
        method, Config = "odd", RewardConfig

        def score(self, prompt, completion, answers):
            return reward

    context = SimpleNamespace(
        models=SimpleNamespace(tokenizer=tiny_tokenizer()), reward_function=Odd
    )
    scorer = Scorer(context, [RewardConfig(method="odd")])
    prompts = [EncodedPrompt((5, 6), (-100, -100), "rows.jsonl:3", "p", ())]
    with pytest.raises(DataError, match=r"E112.*rows\.jsonl:3.*'odd'.*(inf|None|good)"):
        scorer.scores(prompts, [Encoded((5, 6, 7), (-100, -100, 7))], [Answer([7])])


MEANS = {"reward": 0.5, "kl": 0.1, "length": 4.0, "entropy": 1.0}


@pytest.mark.parametrize(
    ("rewards", "spread", "says"),
    [([0.5, 0.5, 0.5], 0.0, True), ([0.5, 0.5], 0.0, True), ([0.5, 0.6, 0.6], 0.0, False),
     ([0.5, 0.5, 0.5], 0.1, False)],
)  # fmt: skip
def test_it_says_so_where_every_answer_gets_the_same_reward(rewards, spread, says):
    told = []
    watch = Diagnostics(told.append)
    for reward in rewards:
        again = Diagnostics(told.append)
        again.restore(watch.state())
        watch = again
        watch.see(MEANS | {"reward": reward}, spread)
    watch.conclude({}, {})
    assert [text for text in told if "the same reward" in text] == told
    assert len(told) == says


def test_the_metrics_of_a_step_by_hand():
    seen = []
    watch = SimpleNamespace(see=lambda means, spread: seen.append((dict(means), spread)))
    rows = [Encoded((9,) * (n + 1), (-100, *(9,) * n), "row") for n in (3, 2)]
    judged = Judged(
        rows,
        [Answer((9,) * 3, ended=True), Answer((9,) * 2, ended=False)],
        ["", ""],
        logps_N=torch.tensor([-1.0, -2.0, -3.0, -1.0, -2.0]),
        entropy_N=torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]),
        values_N=torch.tensor([0.5, 1.0, 1.5, 2.0, 2.5]),
        reference_N=torch.tensor([-1.5, -2.0, -3.5, -1.5, -1.0]),
        row_N=torch.tensor([0, 0, 0, 1, 1]),
        scores_B=torch.tensor([2.0, 1.0]),
    )
    options = {"kl_coef": 0.5, "missing_eos_penalty": 3.0, "adap_kl_ctrl": True, "target": 0.5,
               "horizon": 100, "whiten_advantages": False, "center_values": False}  # fmt: skip
    config = PpoConfig.model_validate({"method": "ppo", **OPTIONS, **options})
    objective = PpoObjective(config, None, watch, seed=0)
    made = objective.rollouts(judged)
    found = {name: value / weight for name, (value, weight) in objective.step_metrics().items()}
    # k1 by token: 0.5, 0, 0.5 and 0.5, -1, so 0.25 an answer; each nat costs 0.5.
    assert found["kl"] == pytest.approx(0.25)
    assert found["reward"] == pytest.approx((2.0 + 1.0) / 2)
    assert found["score"] == pytest.approx((2.0 + 1.0 - 3.0) / 2)
    assert found["rlhf_reward"] == pytest.approx(0.0 - 0.125)
    assert found["length"] == pytest.approx(2.5)
    assert found["ended"] == pytest.approx(0.5)
    assert found["entropy"] == pytest.approx(3.0)
    assert found["kl_coef"] == 0.5
    returns, values = column(made, "returns"), column(made, "values")
    left = [r - v for r, v in zip(returns, values, strict=True)]
    explained = 1 - statistics.pvariance(left) / statistics.pvariance(returns)
    assert found["explained_variance"] == pytest.approx(explained)
    assert seen == [(found, pytest.approx(0.5))], "the sample variance of the scores"
    # Half the target: the error is -0.5, clipped to -0.2, over 2 of 100 answers.
    assert objective.kl_coef == pytest.approx(0.5 * (1 - 0.2 * 2 / 100))
