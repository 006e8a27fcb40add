"""ROUGE of each answer, by rouge-score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Literal, Self

from pydantic import model_validator

from llmft.api import EnvironmentFault, Field, MetricFunction, ScoredAnswer, hookimpl
from llmft_metrics.compared import ComparedConfig, compared

RougeType = Literal["rouge1", "rouge2", "rouge3", "rouge4", "rougeL", "rougeLsum"]


class Rouge(MetricFunction["Rouge.Config"]):
    """The F-measures of ROUGE (Lin 2004), as rouge-score has them, and their means over rows.

    `rouge_1` and so on are of words and their n-grams, `rouge_L` of the longest common subsequence,
    `rouge_Lsum` of that of each line. Of several right answers, the best one counts.
    """

    method = "rouge"

    class Config(ComparedConfig):
        """Which ROUGE, by rouge-score's names."""

        rouge_types: list[RougeType] = Field(
            default_factory=lambda: list[RougeType](["rouge1", "rouge2", "rougeL", "rougeLsum"]),
            min_length=1,
            max_length=6,
            description="which are scored",
        )
        use_stemmer: bool = Field(False, description="compare English words by their stems")

        @model_validator(mode="after")
        def _installed(self) -> Self:
            if find_spec("rouge_score") is None:  # looked for, not imported: that takes time
                what = "the metric 'rouge' needs the package rouge-score, which is not installed"
                raise EnvironmentFault("E206", what, fix="pip install rouge-score")
            return self

        @model_validator(mode="after")
        def _each_once(self) -> Self:
            if len(set(self.rouge_types)) < len(self.rouge_types):
                raise ValueError("rouge_types names one twice; leave it out")
            return self

    def values(self) -> Sequence[str]:
        return tuple(name.removeprefix("rouge") for name in self.config.rouge_types)

    def score(self, answer: ScoredAnswer) -> Mapping[str, float]:
        text = compared(answer, self.config)
        found = self._scorer.score_multi(list(answer.references), text)
        return {name.removeprefix("rouge"): float(one.fmeasure) for name, one in found.items()}

    @cached_property
    def _scorer(self) -> Any:
        from rouge_score.rouge_scorer import RougeScorer

        types = list(self.config.rouge_types)
        return RougeScorer(types, use_stemmer=self.config.use_stemmer)


@hookimpl
def llmft_metrics() -> list[type[Rouge]]:
    return [Rouge]
