"""Rows that are read while a stage trains: a buffer after another, of data that is held nowhere.

A buffer is read, shuffled, encoded and packed as a whole, by the seed, the pass over the data and
the buffer's first record alone. So where a training stands is three numbers, and one that goes on
from them sees the rows that it would have seen.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, cast

from llmft.api import Dataset, Row
from llmft.api.errors import CheckpointError, DataError
from llmft.data.usable_rows import Rows, usable_rows
from llmft.registry.return_checks import records_of

_STATE = ("epoch", "record", "taken")
Record = tuple[str, Mapping[str, Any]]
Prepare = Callable[[Rows], None]
"""Takes rows that cannot be written, or that a rule leaves out, out of a buffer."""


class Stream:
    """A data set's rows, read from a record on, `size` of them at a time.

    They start again after the last one, or after `limit` records.
    """

    def __init__(self, dataset: Dataset[Any], prepare: Prepare = lambda rows: None) -> None:
        self.dataset, self.prepare = dataset, prepare
        self.size = dataset.config.buffer_size
        self._records: Iterator[Record] | None = None
        self._at = 0

    def read(self, record: int) -> Rows:
        """Return the rows of the buffer that begins at a record, counted from 0; none at the end.

        Reading goes on where the last buffer ended; elsewhere all before is read over. Raises
        DataError where a row cannot be used and `on_bad_row` is 'fail', and where more of a buffer
        are bad than `max_bad_rows`.
        """
        config = self.dataset.config
        if self._records is None or record != self._at:
            found = records_of(self.dataset, config.split)
            self._records = islice(found, record, config.limit)
        rows = usable_rows(self.dataset, self._records, self.size)
        self._at = record + rows.seen
        if rows.rows:
            self.prepare(rows)
        return rows


class StreamedItems:
    """What a stage trains on, without an end: taken in order, in place of a list of items.

    make: gives the items of a buffer's rows. shuffled: whether the rows of a buffer, and its items,
    are taken in random order. state: `epoch` passes over the data are done;
    `taken` items were taken of the buffer that begins at `record`.
    """

    def __init__(
        self,
        stream: Stream,
        seed: int,
        make: Callable[[Sequence[Row]], Sequence[Any]],
        *,
        shuffled: bool = True,
    ) -> None:
        self.stream, self.seed, self.make, self.shuffled = stream, seed, make, shuffled
        self.epoch = self.record = self.taken = 0
        self._items: Sequence[Any] = ()
        self._order: list[int] | None = None
        self._next = 0

    def grouped(self, group: Callable[[Sequence[Any]], Sequence[Any]]) -> StreamedItems:
        """Return the stream of what `group` makes of each buffer's items, such as bins."""
        return StreamedItems(
            self.stream, self.seed, lambda rows: group(self.make(rows)), shuffled=self.shuffled
        )

    def take(self, count: int) -> list[Any]:
        """Return the next items. Raises DataError where there is none at all."""
        found: list[Any] = []
        while len(found) < count:
            order = self._filled()
            some = order[self.taken : self.taken + count - len(found)]
            found += [self._items[number] for number in some]
            self.taken += len(some)
            if self.taken == len(order):
                self.record, self.taken, self._order = self._next, 0, None
        return found

    def _filled(self) -> list[int]:
        """Return the order in which the items of the present buffer are taken, having read it."""
        while self._order is None:
            buffer = self.stream.read(self.record)
            if not buffer.rows:
                if not self.record:
                    raise DataError("E103", "the streamed data has no rows that can be used")
                self.epoch, self.record = self.epoch + 1, 0
                continue
            self._next = self.record + buffer.seen
            draw = random.Random(f"{self.seed} {self.epoch} {self.record}")
            rows = list(buffer.rows)
            if self.shuffled and self.stream.size > 1:
                draw.shuffle(rows)
            self._items = self.make(rows)
            self._order = list(range(len(self._items)))
            if self.shuffled:
                draw.shuffle(self._order)
            if self.taken > len(self._order):
                raise _elsewhere(f"{self.taken} items of a buffer that has {len(self._order)}")
        return self._order

    def state(self) -> dict[str, int]:
        """Return where it stands, as plain data for a checkpoint."""
        return {"epoch": self.epoch, "record": self.record, "taken": self.taken}

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on where it stood; CheckpointError (E401) where that is no place in any data."""
        counts = [state.get(name) if isinstance(state, Mapping) else None for name in _STATE]
        for name, count in zip(_STATE, counts, strict=True):
            if type(count) is not int or not 0 <= count < 2**53:
                raise _elsewhere(f"{name}: {str(count)[:80]}")
        self.epoch, self.record, self.taken = cast(Sequence[int], counts)
        self._order = None


def _elsewhere(what: str) -> CheckpointError:
    told = f"the checkpoint's place in the streamed data is none ({what})"
    return CheckpointError("E401", told, fix="use an earlier checkpoint")
