"""A reward for answers of a certain length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from llmft.api import Field, Prompt, RewardConfig, RewardFunction, hookimpl


class Length(RewardFunction["Length.Config"]):
    """1 for an answer of the target length, less for one that is shorter or longer, at least 0."""

    method = "length"

    class Config(RewardConfig):
        """Which length is wanted."""

        target: int = Field(ge=1, le=1_000_000, description="the length that gets a reward of 1")
        unit: Literal["words", "characters"] = Field("words", description="the unit of the length")

    def score(self, prompt: Prompt, completion: str, answers: Sequence[str]) -> float:
        text = completion.strip()
        length = len(text.split()) if self.config.unit == "words" else len(text)
        return max(0.0, 1 - abs(length - self.config.target) / self.config.target)


@hookimpl
def llmft_rewards() -> list[type[Length]]:
    return [Length]
