"""Rewards by length and repetition, beside TRL's own and by hand."""

from __future__ import annotations

import pytest
from llmft_rewards.cosine import Cosine
from llmft_rewards.repetition import Repetition
from llmft_rewards.soft_overlong import SoftOverlong

from llmft.api import Encoded, SampledAnswer

LENGTHS = (1, 3, 8, 11, 12, 15, 16, 20)


def batch(text: str, right: str = "") -> list[SampledAnswer]:
    """Return an answer at several lengths; its words say nothing of them."""
    rows = [Encoded((1, *(5,) * n), (-100, *(5,) * n), "") for n in LENGTHS]
    return [SampledAnswer("p", text, (right,), row) for row in rows]


def test_the_penalty_of_long_answers_is_trls():
    from trl.rewards import get_soft_overlong_punishment

    block = SoftOverlong.Config(method="soft_overlong", max_length=16, cache_length=5)
    theirs = get_soft_overlong_punishment(max_completion_len=16, soft_punish_cache=5)
    expected = theirs(completion_ids=[[5] * n for n in LENGTHS])
    assert SoftOverlong(block).score_batch(batch("a")) == pytest.approx(expected)
    assert {-1.0, 0.0} < set(expected)
    with pytest.raises(ValueError, match="cache_length must be below"):
        SoftOverlong.Config(method="soft_overlong", max_length=5, cache_length=5)


@pytest.mark.parametrize("text", [r"\boxed{0.5}", r"\boxed{0.4}", "half"])
def test_the_curve_of_right_and_wrong_answers_is_trls(text):
    pytest.importorskip("math_verify")
    from trl.rewards import get_cosine_scaled_reward

    values = {
        "max_len": 16, "min_value_wrong": -0.9, "max_value_wrong": -0.2,
        "min_value_correct": 0.3, "max_value_correct": 2.0,
    }  # fmt: skip
    theirs = get_cosine_scaled_reward(**values)
    right = r"the answer is $\frac{1}{2}$"
    expected = theirs(
        [[{"content": text}]] * len(LENGTHS), [right] * len(LENGTHS), [[5] * n for n in LENGTHS]
    )
    made = Cosine(Cosine.Config(method="cosine", **values))
    assert made.score_batch(batch(text, right)) == pytest.approx(expected)
    assert len(set(expected)) > 5


@pytest.mark.parametrize(("text", "size", "score"), [
    ("a b c", 3, 0.0),  # one run
    ("a b", 3, 0.0),  # none
    ("", 1, 0.0),
    ("A b a B a b", 2, -3 / 5),  # ab ba ab ba ab: two are new
    ("x x x x", 1, -3 / 4),
])  # fmt: skip
def test_the_share_of_runs_that_came_before(text, size, score):
    made = Repetition(Repetition.Config(method="repetition", ngram_size=size))
    assert made.score("p", text, ()) == pytest.approx(score)
    twice = Repetition(Repetition.Config(method="repetition", ngram_size=size, max_penalty=-2.0))
    assert twice.score("p", text, ()) == pytest.approx(2 * score)
