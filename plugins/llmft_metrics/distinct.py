"""How varied the answers are: the share of n-grams that differ."""

from __future__ import annotations

from collections.abc import Sequence

from llmft.api import Field, MetricConfig, MetricFunction, ScoredAnswer, hookimpl


class Distinct(MetricFunction["Distinct.Config"]):
    """Different n-grams of words in all answers, divided by all of them: low where they repeat.

    Li et al. 2016, "A Diversity-Promoting Objective Function", section 5 (distinct-1, distinct-2).
    0 where no answer has n words.
    """

    method = "distinct"
    needs_references = False

    class Config(MetricConfig):
        """How long the n-grams are."""

        n: int = Field(2, ge=1, le=10, description="words in an n-gram")

    def score_corpus(self, answers: Sequence[ScoredAnswer]) -> float:
        found = [gram for one in answers for gram in self._grams(one.answer.split())]
        return len(set(found)) / len(found) if found else 0.0

    def _grams(self, words: Sequence[str]) -> list[tuple[str, ...]]:
        n = self.config.n
        return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


@hookimpl
def llmft_metrics() -> list[type[Distinct]]:
    return [Distinct]
