"""The share of answers that are right."""

from __future__ import annotations

from llmft.api import MetricFunction, ScoredAnswer, hookimpl
from llmft.toolkit import exact_match
from llmft_metrics.compared import ComparedConfig, compared


class ExactMatch(MetricFunction[ComparedConfig]):
    """1 for an answer that equals a right one once both are normalised, as TriviaQA does; else 0.

    Joshi et al. 2017, "TriviaQA", section 6: lower case, no punctuation, no articles.
    """

    method = "exact_match"
    Config = ComparedConfig

    def score(self, answer: ScoredAnswer) -> float:
        return exact_match(compared(answer, self.config), answer.references)


@hookimpl
def llmft_metrics() -> list[type[ExactMatch]]:
    return [ExactMatch]
