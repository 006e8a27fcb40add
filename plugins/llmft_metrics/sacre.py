"""BLEU and chrF of all answers together, by sacrebleu."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal, Self

from pydantic import model_validator

from llmft.api import EnvironmentFault, Field, MetricFunction, ScoredAnswer, hookimpl
from llmft_metrics.compared import ComparedConfig, compared


class SacreConfig(ComparedConfig):
    """Settings of both, by sacrebleu's names."""

    lowercase: bool = Field(False, description="compare without upper case")

    @model_validator(mode="after")
    def _installed(self) -> Self:
        if find_spec("sacrebleu") is None:  # looked for, not imported: that takes time
            what = f"the metric '{self.method}' needs the package sacrebleu, which is not installed"
            raise EnvironmentFault("E206", what, fix="pip install sacrebleu")
        return self


def scored(metric: Any, answers: Sequence[ScoredAnswer], config: SacreConfig) -> float:
    """Return the score of a corpus, each answer beside all of its right ones."""
    most = max(len(one.references) for one in answers)
    streams = [
        [one.references[place] if place < len(one.references) else None for one in answers]
        for place in range(most)
    ]
    given = [compared(one, config) for one in answers]
    return float(metric.corpus_score(given, streams).score)


class Bleu(MetricFunction["Bleu.Config"]):
    """BLEU of all answers together (Papineni et al. 2002), from 0 to 100, as sacrebleu has it.

    Post 2018 (arXiv:1804.08771): its own tokenisation, so that scores can be compared. Several
    right answers are several references.
    """

    method = "bleu"
    value_range = (0.0, 100.0)

    class Config(SacreConfig):
        """Settings of BLEU, by sacrebleu's names."""

        tokenize: Literal["13a", "intl", "char", "zh", "none"] = Field(
            "13a", description="how texts are cut into words; char or zh for Chinese"
        )
        smooth_method: Literal["exp", "floor", "add-k", "none"] = Field(
            "exp", description="what stands for n-grams of which none is found"
        )
        max_ngram_order: int = Field(4, ge=1, le=10, description="the longest n-grams, in words")

    def score_corpus(self, answers: Sequence[ScoredAnswer]) -> float:
        from sacrebleu.metrics import BLEU

        config = self.config
        metric = BLEU(
            lowercase=config.lowercase,
            force=True,  # no remark on texts that look tokenised
            tokenize=config.tokenize,
            smooth_method=config.smooth_method,
            max_ngram_order=config.max_ngram_order,
        )
        return scored(metric, answers, config)


class Chrf(MetricFunction["Chrf.Config"]):
    """chrF of all answers together (Popović 2015), from 0 to 100, as sacrebleu has it.

    The F-score of n-grams of characters; with `word_order: 2` it is chrF++ (Popović 2017). Of
    several right answers, the one that is met best counts.
    """

    method = "chrf"
    value_range = (0.0, 100.0)

    class Config(SacreConfig):
        """Settings of chrF, by sacrebleu's names."""

        char_order: int = Field(6, ge=1, le=20, description="the longest n-grams, in characters")
        word_order: int = Field(
            0, ge=0, le=10, description="the longest n-grams in words beside them; 2: chrF++"
        )
        beta: int = Field(2, ge=1, le=10, description="how much recall weighs beside precision")

    def score_corpus(self, answers: Sequence[ScoredAnswer]) -> float:
        from sacrebleu.metrics import CHRF

        config = self.config
        metric = CHRF(
            char_order=config.char_order,
            word_order=config.word_order,
            beta=config.beta,
            lowercase=config.lowercase,
        )
        return scored(metric, answers, config)


@hookimpl
def llmft_metrics() -> list[type[MetricFunction[Any]]]:
    return [Bleu, Chrf]
