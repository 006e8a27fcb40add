"""Rows that come more than once, and rows that are judged on although they are learnt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from llmft.api import Row

EXAMPLES = 3


@dataclass(frozen=True)
class Duplicates:
    """How many rows repeat others, of how many; and the origins of the first ones, in pairs.

    within: training rows that repeat an earlier one. between: rows judged on that are learnt too.
    of_source: those of `within` by the source they are of, where there are several.
    """

    train: int
    judged: int
    within: int
    between: int
    within_examples: tuple[tuple[str, str], ...] = ()
    between_examples: tuple[tuple[str, str], ...] = ()
    of_source: Mapping[str, int] = field(default_factory=dict)

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


def duplicates(
    train: Sequence[Row], judged: Sequence[Row], sources: Mapping[str, str] | None = None
) -> Duplicates:
    """Return how many rows say the same as another one, wherever they came from.

    sources: the name of each training row's source, by its origin, where there are several.
    """
    first: dict[int, str] = {}
    within: list[tuple[str, str]] = []
    once = {id(row): row for row in train}  # a mixture may have the very same row many times
    for row in once.values():
        content = content_of(row)
        if content in first:
            within.append((row.origin, first[content]))
        else:
            first[content] = row.origin
    between = [(row.origin, first[key]) for row in judged if (key := content_of(row)) in first]
    return Duplicates(
        len(once), len(judged), len(within), len(between),
        tuple(within[:EXAMPLES]), tuple(between[:EXAMPLES]),
        Counter(sources[origin] for origin, _ in within) if sources else {},
    )  # fmt: skip


def content_of(row: Row) -> int:
    """Return a hash of what a row says, wherever it came from."""
    names = [one.name for one in fields(row) if one.name != "origin"]
    return hash((type(row).__name__, *(repr(getattr(row, name)) for name in names)))
