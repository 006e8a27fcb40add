"""What the metrics that compare an answer with right ones share."""

from __future__ import annotations

from llmft.api import Field, MetricConfig, ScoredAnswer
from llmft.toolkit import first_line


class ComparedConfig(MetricConfig):
    """Which part of an answer is compared."""

    first_line: bool = Field(
        False, description="compare the answer's first line only, as for short answers"
    )


def compared(answer: ScoredAnswer, config: ComparedConfig) -> str:
    """Return the part of an answer that is compared."""
    return first_line(answer.answer) if config.first_line else answer.answer
