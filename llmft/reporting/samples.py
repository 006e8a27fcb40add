"""Answers before and after training, side by side, with what differs marked."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_WORDS = re.compile(r"\s+|\w+|[^\w\s]")
_LONGEST = 2000
_MOST_COMPARED = 10**6
"""Words of one text times those of the other: what a comparison's time grows with."""

Pieces = list[tuple[str, bool]]


@dataclass(frozen=True)
class Pair:
    """A prompt with both answers, each as pieces of text with whether the other lacks them."""

    prompt: str
    before: Pieces
    after: Pieces
    right: str
    scores: str


def pairs(samples: Sequence[dict[str, Any]], most: int = 20) -> list[Pair]:
    """Return the first samples of both evaluations that have the same prompt, in their order."""
    before = [s for s in samples if s.get("when") == "before"]
    after = [s for s in samples if s.get("when") == "after"]
    found: list[Pair] = []
    for one, two in zip(before, after, strict=False):
        if len(found) < most and one.get("prompt") == two.get("prompt"):
            old, new = (str(each.get("answer", "")).strip() for each in (one, two))
            left, right = marked(old, new)
            found.append(
                Pair(shown(one.get("prompt")), left, right, _right(two), _scores(one, two))
            )
    return found


def marked(old: str, new: str) -> tuple[Pieces, Pieces]:
    """Return two texts as pieces, each with whether the other has it not there.

    Nothing is marked in texts of more than about a thousand words and spaces.
    """
    a, b = _WORDS.findall(old[:_LONGEST]), _WORDS.findall(new[:_LONGEST])
    if len(a) * len(b) > _MOST_COMPARED:
        return [("".join(a), False)], [("".join(b), False)]
    left: Pieces = []
    right: Pieces = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if j > i:
            left.append(("".join(a[i:j]), kind != "equal"))
        if m > k:
            right.append(("".join(b[k:m]), kind != "equal"))
    return left, right


def shown(prompt: Any) -> str:
    """Return a prompt as text; of messages, each with its role."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list):
        return "\n".join(f"{m.get('role')}: {m.get('content')}" for m in prompt)
    return json.dumps(prompt, ensure_ascii=False)


def _right(sample: dict[str, Any]) -> str:
    right = sample.get("right")
    return ", ".join(map(str, right[:5])) if isinstance(right, list) else ""


def _scores(one: dict[str, Any], two: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {one[name]:.2g} \u2192 {value:.2g}"
        for name, value in two.items()
        if isinstance(value, int | float) and isinstance(one.get(name), int | float)
    )
