"""Rows of several sources, put together as a data set says, each known by its source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llmft.api import Dataset, Row
from llmft.api.errors import DataError
from llmft.data.usable_rows import KEPT, Rows
from llmft.registry.return_checks import mixture_of


def mixed(dataset: Dataset[Any], parts: Mapping[str, Rows], seed: int) -> Rows:
    """Return the rows of several sources as a data set puts them together."""
    parts = _told_apart(parts)
    lists = [part.rows for part in parts.values()]
    order = mixture_of(dataset, [len(rows) for rows in lists], seed)
    if not order:
        raise DataError("E103", "the mixture has no rows", fix="check the sources' limits")
    return _together(parts, [lists[source][row] for source, row in order])


def joined(parts: Mapping[str, Rows], limit: int | None) -> Rows:
    """Return the rows of several sources, source after source.

    limit: rows at most, of which each source gets an equal share where it has so many.
    """
    parts = _told_apart(parts)
    shares = equal_shares(limit, [len(part.rows) for part in parts.values()])
    for part, share in zip(parts.values(), shares, strict=True):
        part.rows = part.rows[:share]
    return _together(parts, [row for part in parts.values() for row in part.rows])


def as_mixed(rows: Rows) -> Rows:
    """Return rows of several sources whose parts hold what of each was taken; others as they are.

    A part then has its rows as often as the mixture has them.
    """
    if not rows.sources:
        return rows
    of_source = rows.of_source
    parts: dict[str, list[Row]] = {name: [] for name in rows.sources}
    for row in rows.rows:
        parts[of_source[row.origin]].append(row)
    taken = {name: replace(part, rows=parts[name]) for name, part in rows.sources.items()}
    return replace(rows, rows=[row for part in parts.values() for row in part], sources=taken)


def equal_shares(limit: int | None, counts: Sequence[int]) -> list[int]:
    """Return how many rows of each source make up so many together, as evenly as they can."""
    if limit is None or limit >= sum(counts):
        return list(counts)
    shares = [0] * len(counts)
    while left := limit - sum(shares):
        open_ones = [n for n, count in enumerate(counts) if shares[n] < count]
        for place, number in enumerate(open_ones):
            share = left // len(open_ones) + (place < left % len(open_ones))
            shares[number] = min(counts[number], shares[number] + share)
    return shares


def _together(parts: dict[str, Rows], rows: list[Row]) -> Rows:
    unread: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for part in parts.values():
        unread.update(part.unread)
        left_out.update(part.left_out)
    return Rows(
        rows,
        sum(part.skipped for part in parts.values()),
        [reason for part in parts.values() for reason in part.reasons][:KEPT],
        left_out,
        dict(unread),
        parts,
    )


def _told_apart(parts: Mapping[str, Rows]) -> dict[str, Rows]:
    """Return sources whose rows have origins of their own, also where two read the same file."""
    seen: set[str] = set()
    for name, part in parts.items():
        origins = [row.origin for row in part.rows]
        if not seen.isdisjoint(origins):
            part.rows = [replace(row, origin=f"{row.origin} ({name})") for row in part.rows]
        seen.update(origins)
    return dict(parts)
