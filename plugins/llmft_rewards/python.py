"""A reward function of the user's own, in TRL's form, which runs only under --trust."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

from llmft.api import (
    DataError,
    Field,
    Line,
    Prompt,
    Refusal,
    RewardConfig,
    RewardFunction,
    SampledAnswer,
    hookimpl,
)
from llmft.toolkit import call_trusted, trusted_function, trusted_items

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]


class Python(RewardFunction["Python.Config"]):
    """A function in a Python file, called as TRL calls one; it runs only with `--trust file:FILE`.

    `def reward(prompts, completions, **kwargs)` returns a number for each completion. By name it
    gets lists: completion_ids, answers (the right ones), and the columns of the prompts' rows.
    """

    method = "python"

    class Config(RewardConfig):
        """Which function."""

        file: Line = Field(description="a Python file; it runs only with --trust file:FILE")
        function: Identifier = Field("reward", description="the function in it")

    def code(self) -> Mapping[str, str]:
        return {"file": self.config.file}

    def check(self, columns: Collection[str] | None) -> Iterator[Refusal]:
        missing = self._not_given(self._function(), columns) if columns is not None else None
        if missing:
            yield ("function",), *missing

    def score(self, prompt: Prompt, completion: str, answers: Sequence[str]) -> float:
        from llmft.api import Encoded

        return self._scored([SampledAnswer(prompt, completion, tuple(answers), Encoded((), ()))])[0]

    def score_batch(self, batch: Sequence[SampledAnswer]) -> Sequence[float]:
        return self._scored(batch)

    def _scored(self, batch: Sequence[SampledAnswer]) -> list[float]:
        path, name = self.config.file, self.config.function
        function, takes = self._function()
        named = _arguments(batch)
        if missing := self._not_given((function, takes), named):
            raise DataError("E121", missing[0], fix=missing[1])
        if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in takes):
            wanted = {one.name for one in takes}
            named = {key: values for key, values in named.items() if key in wanted}
        given = call_trusted(path, function, **named)
        if not isinstance(given, Iterable):
            what = f"'{path}': {name} gives a {type(given).__name__}, not a list"
            raise DataError("E112", what, fix="return a list with a number for each completion")
        scores = list(trusted_items(path, given))
        if len(scores) != len(batch):
            what = f"'{path}': {name} gives {len(scores)} scores of {len(batch)} completions"
            raise DataError("E112", what, fix="return one number for each completion")
        return [self._number(score) for score in scores]

    def _function(self) -> _Function:
        """Return the function and its parameters; errors as of `trusted_function`."""
        function = trusted_function(self.config.file, self.config.function)
        signature = call_trusted(self.config.file, inspect.signature, function)
        return function, tuple(signature.parameters.values())

    def _not_given(self, function: _Function, columns: Collection[str]) -> tuple[str, str] | None:
        """Return which parameter has nothing to hold, and how to mend it; None where none."""
        known = {*_ALWAYS, *columns}
        for one in function[1]:
            named = one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
            if one.default is one.empty and named and one.name not in known:
                return (
                    f"'{self.config.file}': '{self.config.function}' takes '{one.name}', and is"
                    f" given {', '.join(sorted(known))}",
                    f"if '{one.name}' is a column, write data.reward_columns: [{one.name}]",
                )
        return None

    def _number(self, score: Any) -> float:
        try:
            if isinstance(score, str | bytes):
                raise TypeError
            return float(score)
        except (TypeError, ValueError) as error:
            where = f"'{self.config.file}': {self.config.function}"
            raise DataError(
                "E112",
                f"{where} gives {str(score)[:80]!r} for a completion, not a number",
                fix="return a number for each completion",
            ) from error


_ALWAYS = ("prompts", "completions", "completion_ids", "answers")
"""What every function may take; `_arguments` makes them."""
_Function = tuple[Callable[..., Any], tuple[inspect.Parameter, ...]]


def _arguments(batch: Sequence[SampledAnswer]) -> dict[str, list[Any]]:
    """Return what TRL gives a reward function: lists with an entry for each completion."""
    columns = dict.fromkeys(key for one in batch for key in one.columns or ())
    found: dict[str, list[Any]] = {
        key: [(one.columns or {}).get(key) for one in batch] for key in columns
    }
    found["answers"] = [list(one.answers) for one in batch]
    found["completion_ids"] = [
        [token for token, label in zip(one.row.input_ids, one.row.labels, strict=True)
         if label == token]
        for one in batch
    ]  # fmt: skip
    found["prompts"] = [
        one.prompt if isinstance(one.prompt, str) else [dict(turn) for turn in one.prompt]
        for one in batch
    ]
    found["completions"] = [
        one.completion
        if isinstance(one.prompt, str)
        else [{"role": "assistant", "content": one.completion}]
        for one in batch
    ]
    return found


@hookimpl
def llmft_rewards() -> list[type[Python]]:
    return [Python]
