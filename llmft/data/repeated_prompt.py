"""Answers that begin with their whole prompt, as some files have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmft.api.errors import DataError


def repeats_prompt(prompt: Any, answers: Sequence[str]) -> bool:
    """Return whether each answer begins with the whole prompt, a text of several words."""
    return (
        isinstance(prompt, str)
        and len(prompt.split()) > 1
        and all(answer.startswith(prompt.rstrip()) for answer in answers)
    )


def without_prompt(
    prompt: Any, answers: Sequence[str], rule: str | None, origin: str
) -> tuple[str, ...]:
    """Return answers without the prompt that they begin with, or as they are.

    rule: the recipe's `repeated_prompt`. Raises DataError where they do and it says nothing.
    """
    if rule == "keep" or not repeats_prompt(prompt, answers):
        return tuple(answers)
    if rule == "strip":
        return tuple(answer[len(prompt.rstrip()) :] for answer in answers)
    what = "the completion begins" if len(answers) == 1 else "both answers begin"
    raise DataError(
        "E101",
        f"{origin}: {what} with the prompt, which would be there twice",
        fix="write data.repeated_prompt: strip to take it off, or keep if it is meant",
    )
