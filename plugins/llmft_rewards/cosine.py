"""A reward for the right result of a mathematical task, by the length of its answer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llmft.api import Field, Prompt, SampledAnswer, hookimpl
from llmft_rewards.math_verify import MathVerify


class Cosine(MathVerify):
    """More for a short right answer, and less for a short wrong one, along half a cosine.

    Yeo et al. 2025, appendix C.1; the names are those of TRL's get_cosine_scaled_reward. Whether an
    answer is right is what `math_verify` says. The length is counted in sampled tokens, the end
    included.
    """

    method = "cosine"

    class Config(MathVerify.Config):
        """The score of an answer without a token, and of one of `max_len`."""

        max_len: int = Field(
            ge=1,
            le=1_000_000,
            description="the length where the curve ends, and from which on it is level",
        )
        min_value_wrong: float = Field(
            -1.0, ge=-1e6, le=1e6, description="of a wrong answer without a token"
        )
        max_value_wrong: float = Field(
            -0.5, ge=-1e6, le=1e6, description="of a wrong answer of max_len tokens"
        )
        min_value_correct: float = Field(
            0.5, ge=-1e6, le=1e6, description="of a right answer of max_len tokens"
        )
        max_value_correct: float = Field(
            1.0, ge=-1e6, le=1e6, description="of a right answer without a token"
        )

    config: Cosine.Config

    def score(self, prompt: Prompt, completion: str, answers: Sequence[str]) -> float:
        """Return the score of a text, whose words stand for its tokens."""
        return self._of(prompt, completion, answers, len(completion.split()))

    def score_batch(self, batch: Sequence[SampledAnswer]) -> Sequence[float]:
        return [
            self._of(one.prompt, one.completion, one.answers, one.row.n_labels) for one in batch
        ]

    def _of(self, prompt: Prompt, completion: str, answers: Sequence[str], length: int) -> float:
        right = super().score(prompt, completion, answers) >= 1
        config = self.config
        first, last = config.min_value_wrong, config.max_value_wrong
        if right:
            first, last = config.max_value_correct, config.min_value_correct
        part = min(length / config.max_len, 1.0)
        return last + (first - last) * (1 + math.cos(math.pi * part)) / 2


@hookimpl
def llmft_rewards() -> list[type[Cosine]]:
    return [Cosine]
