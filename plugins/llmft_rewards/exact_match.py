"""A reward for the right answer."""

from __future__ import annotations

from collections.abc import Sequence

from llmft.api import Field, Prompt, RewardConfig, RewardFunction, hookimpl
from llmft.toolkit import exact_match, f1, first_line


class ExactMatch(RewardFunction["ExactMatch.Config"]):
    """1 for an answer whose first line is right, as TriviaQA's exact match counts it; else 0."""

    method = "exact_match"

    class Config(RewardConfig):
        """Partial credit, and the penalty for text after the answer."""

        partial: float = Field(
            0.0, ge=0, le=1, description="the most for a wrong answer, which gets this times the"
            " F1 of its words"
        )  # fmt: skip
        rambling: float = Field(
            0.0, ge=0, le=100, description="subtracted if text follows the answer's first line"
        )

    def score(self, prompt: Prompt, completion: str, answers: Sequence[str]) -> float:
        answer = first_line(completion)
        earned = exact_match(answer, answers)
        if not earned and self.config.partial:
            earned = self.config.partial * f1(answer, answers)
        rest = completion.strip().removeprefix(answer.strip()).strip()
        return earned - (self.config.rambling if rest else 0.0)


@hookimpl
def llmft_rewards() -> list[type[ExactMatch]]:
    return [ExactMatch]
