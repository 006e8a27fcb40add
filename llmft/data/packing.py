"""Packing: several examples in one row of a batch, up to a length, each seeing only itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, overload

from llmft.api import Encoded, Objective
from llmft.api.context import Sum
from llmft.data.cutting import Pieces

if TYPE_CHECKING:
    import torch

Bin = tuple[Encoded, ...]


class Bins(Sequence[Bin]):
    """Rows in bins. numbers: those of the rows in each; a row is asked for with its bin."""

    def __init__(self, rows: Sequence[Encoded], numbers: Sequence[Sequence[int]]) -> None:
        self.rows, self.numbers = rows, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, key: int) -> Bin: ...
    @overload
    def __getitem__(self, key: slice) -> list[Bin]: ...
    def __getitem__(self, key: int | slice) -> Bin | list[Bin]:
        if isinstance(key, slice):
            return [self[number] for number in range(*key.indices(len(self)))]
        return tuple(self.rows[number] for number in self.numbers[key])


def pack(rows: Sequence[Encoded], max_length: int, strategy: str = "bfd") -> Bins:
    """Return the rows in bins of at most `max_length` tokens, each row whole in one bin.

    strategy: bfd: best fit, longest first, the bins in the order in which they were opened;
    wrapped: rows that follow one another share a bin, as they were cut to fill it (`Pieces`).
    """
    lengths = rows.lengths() if isinstance(rows, Pieces) else [len(row.input_ids) for row in rows]
    return Bins(rows, bins_of(lengths, max_length, strategy))


def bins_of(
    lengths: Sequence[int], max_length: int, strategy: str = "bfd"
) -> Sequence[Sequence[int]]:
    """Return the numbers of the rows in each bin, of rows of such lengths: see `pack`."""
    return (
        _in_order(lengths, max_length) if strategy == "wrapped" else _best_fit(lengths, max_length)
    )


def _in_order(lengths: Sequence[int], max_length: int) -> list[range]:
    begins: list[int] = []
    room = 0
    for number, length in enumerate(lengths):
        if length > room:
            begins.append(number)
            room = max_length
        room -= length
    return [range(a, b) for a, b in zip(begins, [*begins[1:], len(lengths)], strict=True)]


def _best_fit(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    bins: list[list[int]] = []
    # Bins by the room they have left: the smallest room that fits is taken.
    by_room: dict[int, list[int]] = {}
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        need = lengths[row]
        room = min((r for r, open_bins in by_room.items() if r >= need and open_bins), default=None)
        if room is None:
            number, room = len(bins), max_length
            bins.append([])
        else:
            number = by_room[room].pop()
        bins[number].append(row)
        by_room.setdefault(room - need, []).append(number)
    return bins


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
