"""How many words an answer has in common with a right one."""

from __future__ import annotations

from llmft.api import MetricFunction, ScoredAnswer, hookimpl
from llmft.toolkit import f1
from llmft_metrics.compared import ComparedConfig, compared


class F1(MetricFunction[ComparedConfig]):
    """The best F1 of an answer's words against those of a right one, normalised as TriviaQA does.

    Joshi et al. 2017, "TriviaQA", section 6.
    """

    method = "f1"
    Config = ComparedConfig

    def score(self, answer: ScoredAnswer) -> float:
        return f1(compared(answer, self.config), answer.references)


@hookimpl
def llmft_metrics() -> list[type[F1]]:
    return [F1]
