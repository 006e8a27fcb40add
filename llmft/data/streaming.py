"""Rows that are read while a stage trains: a buffer after another, of data that is held nowhere.

A buffer is read, shuffled, encoded and packed as a whole, by the seed, the pass over the data and
the buffer's first record alone. So where a training stands is three numbers, and one that goes on
from them sees the rows that it would have seen. While a buffer is trained on a thread makes the
next one, and nothing of that is in those numbers.
"""

from __future__ import annotations

import random
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from itertools import islice
from queue import SimpleQueue
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


@dataclass(frozen=True)
class _Buffer:
    """Items of a buffer, in which order they are taken, and the record after it."""

    items: Sequence[Any]
    order: list[int]
    next: int


def _buffer(
    stream: Stream,
    make: Callable[[Sequence[Row]], Sequence[Any]],
    seed: int,
    shuffled: bool,
    epoch: int,
    record: int,
) -> _Buffer | None:
    """Return the buffer that begins at a record of a pass over the data; None at its end."""
    buffer = stream.read(record)
    if not buffer.rows:
        return None
    draw = random.Random(f"{seed} {epoch} {record}")
    rows = list(buffer.rows)
    if shuffled and stream.size > 1:
        draw.shuffle(rows)
    items = make(rows)
    order = list(range(len(items)))
    if shuffled:
        draw.shuffle(order)
    return _Buffer(items, order, record + buffer.seen)


class _Ahead:
    """A thread that makes buffers, one after another, before they are asked for.

    All are made by it, the first one too: what a data set opens may belong to the thread that
    opened it. An error is raised where the buffer is taken, and not at all where none is.
    """

    def __init__(self, made: Callable[[int, int], _Buffer | None]) -> None:
        self._asked: SimpleQueue[tuple[int, int] | None] = SimpleQueue()
        self._done: SimpleQueue[Any] = SimpleQueue()
        self._pending: tuple[int, int] | None = None
        work = partial(copy_context().run, _work, made, self._asked, self._done)
        # A daemon: a data set that waits for its next record does not keep a run from ending.
        threading.Thread(target=work, daemon=True, name="llmft-stream").start()
        weakref.finalize(self, self._asked.put, None)

    def begin(self, epoch: int, record: int) -> None:
        """Let a buffer be made, which is taken next, or another one in its place."""
        if self._pending is not None:
            self._done.get()
        self._pending = (epoch, record)
        self._asked.put(self._pending)

    def take(self, epoch: int, record: int) -> _Buffer | None:
        """Return a buffer, having waited for it. Raises what making it has raised."""
        if self._pending != (epoch, record):
            self.begin(epoch, record)
        found = self._done.get()
        self._pending = None
        if isinstance(found, BaseException):
            raise found
        buffer: _Buffer | None = found
        return buffer


def _work(
    made: Callable[[int, int], _Buffer | None],
    asked: SimpleQueue[tuple[int, int] | None],
    done: SimpleQueue[Any],
) -> None:
    while (place := asked.get()) is not None:
        try:
            done.put(made(*place))
        except BaseException as error:
            done.put(error)


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
        self._ahead: _Ahead | None = None
        self._buffer: _Buffer | None = None

    def grouped(self, group: Callable[[Sequence[Any]], Sequence[Any]]) -> StreamedItems:
        """Return the stream of what `group` makes of each buffer's items, such as bins."""
        return StreamedItems(
            self.stream, self.seed, lambda rows: group(self.make(rows)), shuffled=self.shuffled
        )

    def take(self, count: int) -> list[Any]:
        """Return the next items. Raises DataError where there is none at all."""
        found: list[Any] = []
        while len(found) < count:
            buffer = self._filled()
            some = buffer.order[self.taken : self.taken + count - len(found)]
            found += [buffer.items[number] for number in some]
            self.taken += len(some)
            if self.taken == len(buffer.order):
                self.record, self.taken, self._buffer = buffer.next, 0, None
        return found

    def _filled(self) -> _Buffer:
        """Return the present buffer, having waited for it, and let the next one be made."""
        if self._ahead is None:
            made = partial(_buffer, self.stream, self.make, self.seed, self.shuffled)
            self._ahead = _Ahead(made)
        while self._buffer is None:
            found = self._ahead.take(self.epoch, self.record)
            if found is None:
                if not self.record:
                    raise DataError("E103", "the streamed data has no rows that can be used")
                self.epoch, self.record = self.epoch + 1, 0
                continue
            if self.taken > len(found.order):
                raise _elsewhere(f"{self.taken} items of a buffer that has {len(found.order)}")
            self._buffer = found
            self._ahead.begin(self.epoch, found.next)
        return self._buffer

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
        self._buffer = None


def _elsewhere(what: str) -> CheckpointError:
    told = f"the checkpoint's place in the streamed data is none ({what})"
    return CheckpointError("E401", told, fix="use an earlier checkpoint")
