"""Records of a split, of a part of it, or of several: train[:20%]+validation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from llmft.api.splits import split_parts

Record = tuple[str, Mapping[str, Any]]


def records_of_parts(split: str, read: Callable[[str], Iterable[Record]]) -> Iterator[Record]:
    """Yield the records of a split as `datasets` writes it. read: yields those of a whole split.

    Where a bound is a percentage or counts from the end, the split is read twice.
    """
    for part in split_parts(split):
        start, stop = part.bounds
        if part.needs_count:
            start, stop = part.within(sum(1 for _ in read(part.name)))
        yield from islice(read(part.name), start, stop)
