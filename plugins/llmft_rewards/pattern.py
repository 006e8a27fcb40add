"""A reward for answers that a regular expression describes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from functools import partial

from pydantic import field_validator

from llmft.api import Field, Prompt, RewardConfig, RewardFunction, hookimpl
from llmft_rewards.limits import limited

_FLAGS = re.DOTALL | re.MULTILINE


class Pattern(RewardFunction["Pattern.Config"]):
    """1 for an answer that begins with what a regular expression describes, else 0.

    An answer on which the search takes longer than five seconds gets 0.
    """

    method = "pattern"

    class Config(RewardConfig):
        """What an answer is to look like."""

        pattern: str = Field(
            min_length=1,
            max_length=2000,
            description="a regular expression of Python, which is looked for where the answer"
            " begins, its spaces included; '.' stands for a line break too, '^' and '$' for the"
            " ends of a line, '\\Z' for the answer's end",
        )

        @field_validator("pattern")
        @classmethod
        def _compiles(cls, pattern: str) -> str:
            try:
                with warnings.catch_warnings(action="ignore"):  # of forms that may change
                    re.compile(pattern, _FLAGS)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"this is no regular expression of Python: {error}") from error
            return pattern

    def score(self, prompt: Prompt, completion: str, answers: Sequence[str]) -> float:
        found = limited(partial(re.match, self.config.pattern, completion, _FLAGS))
        return float(found is not None)


@hookimpl
def llmft_rewards() -> list[type[Pattern]]:
    return [Pattern]
