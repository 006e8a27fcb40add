"""Packing: several examples in one row of a batch, up to a length, each seeing only itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from llmft.api import Encoded, Objective
from llmft.api.context import Sum

if TYPE_CHECKING:
    import torch

Bin = tuple[Encoded, ...]


def pack(rows: Sequence[Encoded], max_length: int, strategy: str = "bfd") -> list[Bin]:
    """Return the rows in bins of at most `max_length` tokens, each row whole in one bin.

    strategy: bfd: best fit, longest first, the bins in the order in which they were opened;
    wrapped: rows that follow one another share a bin, as `cutting.wrap` cut them to fill it.
    """
    return _in_order(rows, max_length) if strategy == "wrapped" else _best_fit(rows, max_length)


def _in_order(rows: Sequence[Encoded], max_length: int) -> list[Bin]:
    bins: list[list[Encoded]] = []
    room = 0
    for row in rows:
        if len(row.input_ids) > room:
            bins.append([])
            room = max_length
        bins[-1].append(row)
        room -= len(row.input_ids)
    return [tuple(rows) for rows in bins]


def _best_fit(rows: Sequence[Encoded], max_length: int) -> list[Bin]:
    bins: list[list[Encoded]] = []
    # Bins by the room they have left: the smallest room that fits is taken.
    by_room: dict[int, list[int]] = {}
    for row in sorted(rows, key=lambda row: -len(row.input_ids)):
        need = len(row.input_ids)
        room = min((r for r, open_bins in by_room.items() if r >= need and open_bins), default=None)
        if room is None:
            number, room = len(bins), max_length
            bins.append([])
        else:
            number = by_room[room].pop()
        bins[number].append(row)
        by_room.setdefault(room - need, []).append(number)
    return [tuple(rows) for rows in bins]


class PackedObjective:
    """An objective over rows, asked about bins of rows."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def weight(self, batch: Sequence[Bin]) -> float:
        """Return the weight of all rows in the bins."""
        return self.objective.weight(list(chain.from_iterable(batch)))

    def loss(self, model: Any, batch: Sequence[Bin]) -> tuple[torch.Tensor, Mapping[str, Sum]]:
        """Return the loss summed over all rows in the bins."""
        return self.objective.loss(model, list(chain.from_iterable(batch)))
