"""A reward for the right number at the end of an answer, as in GSM8K."""

from __future__ import annotations

from collections.abc import Sequence

from llmft.api import Field, Prompt, RewardConfig, RewardFunction, hookimpl
from llmft.toolkit import final_number, last_number


class FinalNumber(RewardFunction["FinalNumber.Config"]):
    """1 where an answer's final number is that of a right answer, else 0.

    The final number is the one after the last '####', else the one in the last 'boxed' of LaTeX,
    else the last one in the text.
    """

    method = "final_number"

    class Config(RewardConfig):
        """Partial credit."""

        any_number: float = Field(
            0.0, ge=0, le=1, description="the score of an answer that has a number, and a wrong one"
        )

    def score(self, prompt: Prompt, completion: str, answers: Sequence[str]) -> float:
        if final_number(completion, answers):
            return 1.0
        return self.config.any_number if last_number(completion) is not None else 0.0


@hookimpl
def llmft_rewards() -> list[type[FinalNumber]]:
    return [FinalNumber]
