"""A reward for the right result of a mathematical task, by the package math-verify."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from importlib.util import find_spec
from typing import Any, Literal, Self

from pydantic import model_validator

from llmft.api import EnvironmentFault, Field, Prompt, RewardConfig, RewardFunction, hookimpl
from llmft_rewards.limits import limited


class MathVerify(RewardFunction["MathVerify.Config"]):
    """1 where an answer's result is, as mathematics, that of a right answer, else 0.

    The result is read out of LaTeX: that in \\boxed{} before others. Right answers may be plain
    numbers, too. One whose result cannot be read, or that takes longer than five seconds, gives 0.
    """

    method = "math_verify"

    class Config(RewardConfig):
        """How results are read. The defaults are those of TRL's accuracy_reward."""

        answer_tag: str | None = Field(
            None,
            pattern=r"^\w{1,50}$",
            description="a tag such as answer: where a text has <answer>...</answer>, only what the"
            " first one holds is read, in an answer as freely as in a right answer",
        )
        boxed: Literal["all", "last", "none"] = Field(
            "all",
            description="which \\boxed{} inside of LaTeX that was found is read for its content;"
            " math-verify's name",
        )
        extraction_mode: Literal["first_match", "any_match"] = Field(
            "any_match",
            description="whether a right answer is read by the first rule that fits, or by the"
            " next one too where that reads nothing; math-verify's name",
        )

        @model_validator(mode="after")
        def _installed(self) -> Self:
            if find_spec("math_verify") is None:  # looked for, not imported: that takes time
                what = f"the reward '{self.method}' needs the package math-verify,"
                what += " which is not installed"
                raise EnvironmentFault("E206", what, fix="pip install math-verify")
            return self

    def score(self, prompt: Prompt, completion: str, answers: Sequence[str]) -> float:
        from math_verify import parse, verify

        mode = self.config.extraction_mode
        said, was_tagged = self._within(completion)
        how = {} if was_tagged else {"extraction_config": self._strict}
        read = partial(parse, parsing_timeout=None)
        found = _limited(partial(read, said, extraction_mode="first_match", **how))
        for right in answers if found else ():
            gold = _limited(partial(read, self._within(right)[0], extraction_mode=mode))
            if gold and _limited(partial(verify, gold, found, timeout_seconds=None)):
                return 1.0
        return 0.0

    def _within(self, text: str) -> tuple[str, bool]:
        """Return what the first tag of a text holds, or the whole text, and whether it has one."""
        if (tag := self.config.answer_tag) is None:
            return text, False
        _, opened, rest = text.partition(f"<{tag}>")
        held, closed, _ = rest.partition(f"</{tag}>")
        return (held.strip(), True) if opened and closed else (text, False)

    @cached_property
    def _strict(self) -> list[Any]:
        """Only well-formed LaTeX between its signs, and the content of a box before all other."""
        from latex2sympy2_extended import NormalizationConfig
        from math_verify import LatexExtractionConfig

        rules = NormalizationConfig(
            basic_latex=True,
            units=True,
            malformed_operators=False,
            nits=False,
            boxed=self.config.boxed,
        )
        return [
            LatexExtractionConfig(
                normalization_config=rules,
                boxed_match_priority=0,
                try_extract_without_anchor=False,
            )
        ]


def _limited(step: Callable[[], Any]) -> Any:
    """Return what a step of math-verify returns; None where it takes too long.

    Its own limits are off: they would end the one on all answers of a step.
    """
    import logging

    for name in ("parser", "grader"):  # each would warn once that there is no limit
        logging.getLogger(f"math_verify.{name}").setLevel(logging.ERROR)
    return limited(step)


@hookimpl
def llmft_rewards() -> list[type[MathVerify]]:
    return [MathVerify]
