"""A step's rows as forward passes of so many tokens at most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmft.modeling.counting import token_rows


def passes_of(items: Sequence[Any], budget: int, *, padded: bool) -> list[list[int]]:
    """Return the items' numbers, in passes of at most so many tokens.

    First-fit decreasing: the largest first, each into the first pass that has room for it, which
    takes about 11/9 of the fewest passes at most (Johnson et al. 1974). padded: a pass takes its
    longest row for each of its rows, so that the longest go first. Of a pair, both answers with
    their prompts are counted. An item that is longer than the budget is a pass of its own.
    """
    sizes = [[len(row.input_ids) for row in token_rows(item)] for item in items]
    order = [max(size, default=0) if padded else sum(size) for size in sizes]
    passes: list[_Pass] = []
    for number in sorted(range(len(items)), key=lambda n: -order[n]):
        there = next((one for one in passes if one.with_(sizes[number], padded) <= budget), None)
        if there is None:
            passes.append(there := _Pass())
        there.take(number, sizes[number])
    return [one.numbers for one in passes]


class _Pass:
    """The rows of a forward pass so far."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.tokens = self.rows = self.longest = 0

    def with_(self, more: Sequence[int], padded: bool) -> int:
        """Return the tokens that it takes with more rows, of these lengths."""
        if padded:
            return (self.rows + len(more)) * max(self.longest, *more, 0)
        return self.tokens + sum(more)

    def take(self, number: int, lengths: Sequence[int]) -> None:
        self.numbers.append(number)
        self.tokens += sum(lengths)
        self.rows += len(lengths)
        self.longest = max(self.longest, *lengths, 0)
