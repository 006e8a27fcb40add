"""Rows that come more than once, and rows judged on although they or their prompts are learnt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from llmft.api import ChatRow, ClassificationRow, Prompt, Row, TextRow

EXAMPLES = 3
_ROWS, _SHARE = 20, 0.05
"""A prompt that more training rows have, and more than this share of them, is an instruction that
many texts come with, and says nothing of a row."""


@dataclass(frozen=True)
class Duplicates:
    """How many rows repeat others, of how many; and the origins of the first ones, in pairs.

    within: training rows that repeat an earlier one. between: rows judged on that are learnt too.
    asked: those that are not, but whose prompt is that of training rows.
    of_source: those of `within` by the source they are of, where there are several.
    """

    train: int
    judged: int
    within: int
    between: int
    within_examples: tuple[tuple[str, str], ...] = ()
    between_examples: tuple[tuple[str, str], ...] = ()
    of_source: Mapping[str, int] = field(default_factory=dict)
    asked: int = 0
    asked_examples: tuple[tuple[str, str], ...] = ()

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
        if self.asked:
            said.append(
                f"{self.asked:,} of {self.judged:,} evaluation rows have the prompt of training"
                " rows, so the scores are better than on unseen prompts (evaluate.holdout_by:"
                " prompt holds whole prompts out)"
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
    prompts = Counter(map(prompt_of, once.values()))
    most = max(_ROWS, _SHARE * len(once)) if len(prompts) > 1 else 0
    where = {prompt_of(row): row.origin for row in reversed(once.values())}
    asked = [
        (row.origin, where[prompt]) for row in judged
        if content_of(row) not in first
        and (prompt := prompt_of(row)) is not None and 0 < prompts[prompt] <= most
    ]  # fmt: skip
    return Duplicates(
        len(once), len(judged), len(within), len(between),
        tuple(within[:EXAMPLES]), tuple(between[:EXAMPLES]),
        Counter(sources[origin] for origin, _ in within) if sources else {},
        len(asked), tuple(asked[:EXAMPLES]),
    )  # fmt: skip


def content_of(row: Row) -> int:
    """Return a hash of what a row says, wherever it came from."""
    names = [one.name for one in fields(row) if one.name != "origin"]
    return hash((type(row).__name__, *(repr(getattr(row, name)) for name in names)))


def prompt_of(row: Row) -> int | None:
    """Return a hash of what a row asks: its prompt, or the turns before the first answer.

    None where it asks nothing, as plain text does.
    """
    if isinstance(row, TextRow):
        return None
    if isinstance(row, ChatRow):
        turns = [turn["role"] for turn in row.messages]
        first = turns.index("assistant") if "assistant" in turns else len(turns)
        asked: Prompt = row.messages[:first]
    elif isinstance(row, ClassificationRow) and row.text_pair is not None:
        return hash(repr((row.prompt, row.text_pair)))
    else:
        asked = row.prompt
    return hash(repr(asked)) if asked and (not isinstance(asked, str) or asked.strip()) else None
