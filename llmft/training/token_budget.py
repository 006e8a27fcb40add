"""A step's rows as forward passes of so many tokens at most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmft.modeling.counting import token_rows


def passes_of(
    items: Sequence[Any], budget: int, *, padded: bool, processes: int = 1
) -> list[list[int]]:
    """Return the items' numbers, in passes of at most so many tokens.

    First-fit decreasing: the largest first, each into the first pass that has room for it, which
    takes about 11/9 of the fewest passes at most (Johnson et al. 1974). padded: a pass takes its
    longest row for each of its rows, so that the longest go first. Of a pair, both answers with
    their prompts are counted. An item that is longer than the budget is a pass of its own.

    Several processes get equally many passes, where there are items enough, of about as many tokens
    each: a step waits for the one that has most. The largest item first, each into the smallest
    pass (longest processing time first, Graham 1969); padded ones with their neighbours in length.
    """
    sizes = [[len(row.input_ids) for row in token_rows(item)] for item in items]
    order = [max(size, default=0) if padded else sum(size) for size in sizes]
    largest_first = sorted(range(len(items)), key=lambda n: -order[n])
    passes: list[_Pass] = []
    for number in largest_first:
        there = next((one for one in passes if one.with_(sizes[number], padded) <= budget), None)
        if there is None:
            passes.append(there := _Pass())
        there.take(number, sizes[number])
    if processes > 1:
        passes = _even(passes, sizes, largest_first, budget, padded, processes)
    return [one.numbers for one in passes]


def _even(
    passes: list[_Pass],
    sizes: Sequence[Sequence[int]],
    largest_first: Sequence[int],
    budget: int,
    padded: bool,
    processes: int,
) -> list[_Pass]:
    """Return passes of which each process takes as many, or those given, where none hold all."""
    count = min(-(-len(passes) // processes) * processes, len(sizes))
    if padded:  # neighbours in length, so many that the costliest pass is as small as can be
        low, high, even = 0, budget, passes
        while low < high:
            middle = (low + high) // 2
            tried = _in_order(sizes, largest_first, middle)
            low, high, even = (
                (low, middle, tried) if len(tried) <= count else (middle + 1, high, even)
            )
        return even
    even = [_Pass() for _ in range(count)]
    for number in largest_first:
        there = min(even, key=lambda one: one.with_(sizes[number], padded))
        if there.numbers and there.with_(sizes[number], padded) > budget:
            return passes
        there.take(number, sizes[number])
    return even


def _in_order(
    sizes: Sequence[Sequence[int]], largest_first: Sequence[int], most: int
) -> list[_Pass]:
    """Return padded passes of the items in their order, of so many tokens where one has room."""
    passes = [_Pass()]
    for number in largest_first:
        if passes[-1].numbers and passes[-1].with_(sizes[number], padded=True) > most:
            passes.append(_Pass())
        passes[-1].take(number, sizes[number])
    return passes


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
