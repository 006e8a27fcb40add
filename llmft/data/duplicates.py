"""Rows that come more than once, and rows that are judged on although they are learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from llmft.api import Row


def repeats(train: Sequence[Row], judged: Sequence[Row]) -> str:
    """Return how many rows repeat others, and how many are in both; '' where there is none."""
    learnt = [_content(row) for row in train]
    known = set(learnt)
    again = len(learnt) - len(known)
    both = sum(_content(row) in known for row in judged)
    said = []
    if again:
        said.append(f"{again:,} of {len(train):,} training rows repeat another one")
    if both:
        said.append(
            f"{both:,} of {len(judged):,} evaluation rows are also training rows, so the scores"
            " are better than on unseen rows"
        )
    return "; ".join(said)


def _content(row: Row) -> int:
    """Return a hash of what a row says, wherever it came from."""
    names = [field.name for field in fields(row) if field.name != "origin"]
    return hash((type(row).__name__, *(repr(getattr(row, name)) for name in names)))
