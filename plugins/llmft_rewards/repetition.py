"""A penalty for answers that repeat themselves."""

from __future__ import annotations

from collections.abc import Sequence

from llmft.api import Field, Prompt, RewardConfig, RewardFunction, hookimpl


class Repetition(RewardFunction["Repetition.Config"]):
    """The share of an answer's runs of words that it has had before, times `max_penalty`.

    Yeo et al. 2025, appendix C.1, as ms-swift has it: 0 where no run comes twice.
    """

    method = "repetition"

    class Config(RewardConfig):
        """Which runs are counted."""

        ngram_size: int = Field(3, ge=1, le=1000, description="the words of a run")
        max_penalty: float = Field(
            -1.0, ge=-1e6, le=0, description="the score of an answer that only repeats"
        )

    def score(self, prompt: Prompt, completion: str, answers: Sequence[str]) -> float:
        words, size = completion.lower().split(), self.config.ngram_size
        runs = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
        if not runs:
            return 0.0
        return (1 - len(set(runs)) / len(runs)) * self.config.max_penalty


@hookimpl
def llmft_rewards() -> list[type[Repetition]]:
    return [Repetition]
