"""A reward for answers of a certain form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import model_validator

from llmft.api import Field, Line, Prompt, RewardConfig, RewardFunction, hookimpl


class Format(RewardFunction["Format.Config"]):
    """The share of the given rules that an answer follows."""

    method = "format"

    class Config(RewardConfig):
        """The rules; spaces around the answer do not count."""

        starts_with: Line | None = Field(None, description="text that the answer begins with")
        ends_with: Line | None = Field(None, description="text that the answer ends with")
        contains: Line | None = Field(None, description="text that the answer contains")
        lacks: Line | None = Field(None, description="text that the answer does not contain")
        one_line: bool = Field(False, description="the answer is a single line")
        max_words: int | None = Field(
            None, ge=1, le=1_000_000, description="the most words in the answer"
        )

        @model_validator(mode="after")
        def _some_rule(self) -> Format.Config:
            if not self.model_fields_set - set(RewardConfig.model_fields):
                raise ValueError("give at least one rule, such as max_words")
            return self

    def score(self, prompt: Prompt, completion: str, answers: Sequence[str]) -> float:
        kept = list(self._kept(completion.strip()))
        return sum(kept) / len(kept)

    def _kept(self, text: str) -> Iterator[bool]:
        rules = self.config
        if rules.starts_with is not None:
            yield text.startswith(rules.starts_with)
        if rules.ends_with is not None:
            yield text.endswith(rules.ends_with)
        if rules.contains is not None:
            yield rules.contains in text
        if rules.lacks is not None:
            yield rules.lacks not in text
        if rules.one_line:
            yield len(text.splitlines()) == 1
        if rules.max_words is not None:
            yield 0 < len(text.split()) <= rules.max_words


@hookimpl
def llmft_rewards() -> list[type[Format]]:
    return [Format]
