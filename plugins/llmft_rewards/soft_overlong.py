"""A penalty for answers that come near the longest length, or beyond it."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import model_validator

from llmft.api import Field, Prompt, RewardConfig, RewardFunction, SampledAnswer, hookimpl


class SoftOverlong(RewardFunction["SoftOverlong.Config"]):
    """0 for an answer that is short enough, and down to -1 within the last tokens of the length.

    Yu et al. 2025, DAPO, eq. 13. The length is counted in sampled tokens, the end included.
    """

    method = "soft_overlong"

    class Config(RewardConfig):
        """From which length on, in tokens."""

        max_length: int = Field(
            ge=1, le=1_000_000, description="the length that gets -1, as every longer one does"
        )
        cache_length: int = Field(
            ge=1, le=1_000_000, description="over how many tokens before that the score falls"
        )

        @model_validator(mode="after")
        def _shorter(self) -> SoftOverlong.Config:
            if self.cache_length >= self.max_length:
                raise ValueError("cache_length must be below max_length; lower it")
            return self

    def score(self, prompt: Prompt, completion: str, answers: Sequence[str]) -> float:
        """Return the score of a text, whose words stand for its tokens."""
        return self._of(len(completion.split()))

    def score_batch(self, batch: Sequence[SampledAnswer]) -> Sequence[float]:
        return [self._of(one.row.n_labels) for one in batch]

    def _of(self, length: int) -> float:
        beyond = length - (self.config.max_length - self.config.cache_length)
        return -min(max(beyond / self.config.cache_length, 0.0), 1.0)


@hookimpl
def llmft_rewards() -> list[type[SoftOverlong]]:
    return [SoftOverlong]
