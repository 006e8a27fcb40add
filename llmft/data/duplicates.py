"""Rows that come more than once, and rows that are judged on although they are learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from llmft.api import Row

EXAMPLES = 3


@dataclass(frozen=True)
class Duplicates:
    """How many rows repeat others, of how many; and the origins of the first ones, in pairs.

    within: training rows that repeat an earlier one. between: rows judged on that are learnt too.
    """

    train: int
    judged: int
    within: int
    between: int
    within_examples: tuple[tuple[str, str], ...] = ()
    between_examples: tuple[tuple[str, str], ...] = ()

    def note(self) -> str:
        """Return what a person should know, or '' where no row is there twice."""
        said = []
        if self.within:
            said.append(f"{self.within:,} of {self.train:,} training rows repeat another one")
        if self.between:
            said.append(
                f"{self.between:,} of {self.judged:,} evaluation rows are also training rows, so"
                " the scores are better than on unseen rows"
            )
        return "; ".join(said)


def duplicates(train: Sequence[Row], judged: Sequence[Row]) -> Duplicates:
    """Return how many rows say the same as another one, wherever they came from."""
    first: dict[int, str] = {}
    within: list[tuple[str, str]] = []
    for row in train:
        content = _content(row)
        if content in first:
            within.append((row.origin, first[content]))
        else:
            first[content] = row.origin
    between = [(row.origin, first[key]) for row in judged if (key := _content(row)) in first]
    return Duplicates(
        len(train), len(judged), len(within), len(between),
        tuple(within[:EXAMPLES]), tuple(between[:EXAMPLES]),
    )  # fmt: skip


def _content(row: Row) -> int:
    """Return a hash of what a row says, wherever it came from."""
    names = [field.name for field in fields(row) if field.name != "origin"]
    return hash((type(row).__name__, *(repr(getattr(row, name)) for name in names)))
