"""Several rewards of the same answers: kept apart, weighed, bounded in time, refused by name."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from llmft_alignments.online.scoring import Scorer

from llmft.api import Answer, DataError, Encoded, EncodedPrompt, RewardConfig, RewardFunction
from llmft.modeling.tiny_models import tiny_tokenizer


class Letters(RewardFunction[RewardConfig]):
    method, Config = "letters", RewardConfig

    def score(self, prompt, completion, answers):
        return float(len(completion)) + 10 * (completion in answers)


class Batched(Letters):
    """Scores all answers at once, by the tokens that it is given."""

    def score_batch(self, batch):
        return [float(sum(one.row.input_ids)) for one in batch]


def scorer_of(*kinds: type, stops=(), timeout=None, **options) -> Scorer:
    made = {kind.method: kind for kind in kinds}
    context = SimpleNamespace(
        models=SimpleNamespace(tokenizer=tiny_tokenizer()),
        reward_function=lambda block: made[block.method](block),
    )
    blocks = [RewardConfig(method=kind.method, **options) for kind in kinds]
    return Scorer(context, blocks, stops, timeout)


def given():
    """Two answers, 'ab' and 'c', of which the second is right."""
    prompts = [EncodedPrompt((1, 2), (-100, -100), f"rows:{n}", "p", ("c",)) for n in (1, 2)]
    answers = [Answer([97, 98], ended=True), Answer([99], ended=False)]
    rows = [Encoded((1, 2, *a.ids), (-100, -100, *a.ids), "") for a in answers]
    return prompts, rows, answers


def test_each_reward_has_a_column_and_the_sum_has_their_weights():
    scorer = scorer_of(Letters, Letters, weight=0.5)
    assert scorer.names == ["letters", "letters_2"]
    texts, scores_BR = scorer.scores(*given())
    assert texts == ["ab", "c"]
    assert scores_BR.tolist() == [[2.0, 2.0], [11.0, 11.0]]
    assert scorer.weighted(scores_BR).tolist() == [2.0, 11.0]
    empty = scorer.scores([], [], [])[1]
    assert empty.shape == (0, 2)
    assert scorer.weighted(empty).shape == (0,)
    assert scorer_of().weighted(torch.zeros(3, 0)).tolist() == [0.0] * 3


def test_a_reward_may_read_the_tokens_and_a_stop_token_is_followed_by_the_end():
    _, scores_BR = scorer_of(Batched).scores(*given())
    assert scores_BR.flatten().tolist() == [3 + 97 + 98, 3 + 99]
    end = tiny_tokenizer().eos_token_id
    _, closed_BR = scorer_of(Batched, stops=(98,)).scores(*given())
    assert closed_BR.flatten().tolist() == [3 + 97 + 98 + end, 3 + 99]


def test_a_reward_that_takes_too_long_is_named_with_its_limit():
    class Slow(Letters):
        method = "slow"

        def score(self, prompt, completion, answers):
            try:
                time.sleep(5)
            except Exception:
                return 0.0
            return 1.0

    started = time.monotonic()
    with pytest.raises(DataError, match=r"E119.*'slow'.*2 answers within 0\.05 seconds"):
        scorer_of(Slow, timeout=0.05).scores(*given())
    assert time.monotonic() - started < 3


def test_a_reward_of_too_few_answers_is_refused():
    class Lazy(Letters):
        def score_batch(self, batch):
            return [1.0]

    with pytest.raises(DataError, match=r"E112.*'letters' gives 1 scores of 2"):
        scorer_of(Lazy).scores(*given())


def test_numpys_numbers_are_rewards():
    class Numpy(Letters):
        def score_batch(self, batch):
            return [np.float32(0.5), np.int64(2)]

    assert scorer_of(Numpy).scores(*given())[1].tolist() == [[0.5], [2.0]]


@pytest.mark.parametrize("reward", [
    None, "high", [1.0], float("nan"), float("inf"), 1j, 1e300,
])  # fmt: skip
def test_a_reward_that_is_no_finite_number_is_refused_with_its_row(reward):
    class Odd(Letters):
        def score_batch(self, batch):
            return [1, reward]

    said = r"E112.*rows:2: the reward of 'letters' for an answer is "
    with pytest.raises(DataError, match=said):
        scorer_of(Odd).scores(*given())
