"""The share of answers that end with the right number, as in GSM8K."""

from __future__ import annotations

from llmft.api import MetricConfig, MetricFunction, ScoredAnswer, hookimpl
from llmft.toolkit import final_number


class FinalNumber(MetricFunction[MetricConfig]):
    """1 for an answer whose final number is that of a right answer, else 0.

    The final number is the one after the last '####', else the one in the last 'boxed' of LaTeX,
    else the last one in the text.
    """

    method = "final_number"
    Config = MetricConfig

    def score(self, answer: ScoredAnswer) -> float:
        return final_number(answer.answer, answer.references)


@hookimpl
def llmft_metrics() -> list[type[FinalNumber]]:
    return [FinalNumber]
