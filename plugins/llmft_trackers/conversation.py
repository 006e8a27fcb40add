"""A sample's prompt as a person reads it, be it a text or the turns of a conversation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Turn = tuple[str, str]
"""Who speaks, '' in a plain text; and what is said."""


def turns_of(prompt: Any) -> list[Turn]:
    """Return the turns of a prompt: those of its messages, or one without a speaker."""
    if isinstance(prompt, str):
        return [("", prompt)]
    return [(str(turn["role"]), str(turn["content"])) for turn in prompt]


def as_text(prompt: Any) -> str:
    """Return a prompt as text; of a conversation, each turn begins on a line of its own."""
    return "\n".join(f"{who}: {said}" if who else said for who, said in turns_of(prompt))


def side_by_side(
    samples: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[Any, Mapping[str, Mapping[str, Any]]]]:
    """Yield each prompt with its samples, by when they were taken: `before`, `after`."""
    found: dict[str, tuple[Any, dict[str, Mapping[str, Any]]]] = {}
    for sample in samples:
        key = json.dumps(sample["prompt"])
        found.setdefault(key, (sample["prompt"], {}))[1].setdefault(str(sample["when"]), sample)
    yield from found.values()
