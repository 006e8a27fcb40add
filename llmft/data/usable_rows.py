"""The rows of a data set, read through its class: bad ones are counted, and left out or refused."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from typing import Any

from llmft.api import Conversation, Dataset, Row
from llmft.api.errors import DataError, LeftOutRow, LlmftError
from llmft.data.conversation import noticing
from llmft.data.dropping import Dropped
from llmft.data.replacing import replaced
from llmft.data.unread import Unread
from llmft.recipes.tree import KeyPath
from llmft.registry.return_checks import records_of, row_of

_SHOWN, KEPT = 3, 1000  # reasons why a row cannot be used: in a line, and in a preview
_LETTERS = 500  # of one of them
_CHOICES = ("learn", "turns", "skip", "message", "special_tokens", "columns")


@dataclass
class Rows:
    """The rows of one split, what was skipped as bad, and what a stated rule left out.

    reasons: why rows were skipped, with their places, of the first thousand.
    unread: columns and keys that the data set never looked at, and in how many rows they are.
    pin: of streamed data, of which `rows` are the first ones: what tells all of it apart.
    sources: where the data are put together of several, what was read of each, by its name; `rows`
    then holds their rows as they are trained or scored on. met: what a person should know of the
    rows that were used, and of how many.
    """

    rows: list[Row]
    skipped: int = 0
    reasons: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    unread: dict[str, int] = field(default_factory=dict)
    sources: dict[str, Rows] = field(default_factory=dict)
    pin: str = ""
    met: Counter[str] = field(default_factory=Counter)

    @property
    def digest(self) -> str:
        """Return a SHA-256 over the rows as they are used, origins left out."""
        hasher = hashlib.sha256(self.pin.encode())
        for row in self.rows:
            said = json.dumps(_said(row), ensure_ascii=False, sort_keys=True, default=str)
            hasher.update(said.encode())
        return hasher.hexdigest()

    def note(self) -> str:
        """Return what a person should know about skipped rows, or ''."""
        if self.sources:
            notes = {name: part.note() for name, part in self.sources.items()}
            return "; ".join(f"{name}: {note}" for name, note in notes.items() if note)
        said = []
        if self.skipped:
            share = self.skipped / self.seen
            shown = "; ".join(self.reasons[:_SHOWN])
            more = ", ... (llmft preview names each)" if self.skipped > _SHOWN else ""
            said.append(f"skipped {self.skipped} of {self.seen} rows ({share:.1%}): {shown}{more}")
        if self.left_out:
            counts = ", ".join(f"{n} {reason}" for reason, n in sorted(self.left_out.items()))
            said.append(f"left out of {self.seen} rows: {counts}")
        said += [f"{why}: {n:,} of {self.seen:,} rows" for why, n in sorted(self.met.items())]
        return "; ".join(said)

    @property
    def seen(self) -> int:
        """The number of records that were read."""
        if self.sources:
            return sum(part.seen for part in self.sources.values())
        return len(self.rows) + self.skipped + self.left_out.total()

    def by_source(self, origins: Sequence[str]) -> dict[str, list[int]]:
        """Return the numbers of the items of each source, by their origins; none for one source."""
        found: dict[str, list[int]] = {}
        of_source = self.of_source
        for number, origin in enumerate(origins if of_source else ()):
            if origin in of_source:
                found.setdefault(of_source[origin], []).append(number)
        return found

    @property
    def of_source(self) -> dict[str, str]:
        """The name of the source of each row, by its origin; empty where there is one source."""
        return {row.origin: name for name, part in self.sources.items() for row in part.rows}


def _said(row: Row) -> dict[str, Any]:
    """Return what a row says, without its origin and without choices left as they were."""
    made: dict[str, Any] = {}
    for one in fields(row):
        value = getattr(row, one.name)
        if isinstance(value, Conversation) and len(plain := value.plain()) > 1:
            value = plain
        if one.name != "origin" and (one.name not in _CHOICES or value != one.default):
            made[one.name] = value
    return made


def read_rows(dataset: Dataset[Any], split: str, limit: int | None) -> Rows:
    """Return the usable rows of a split.

    Raises DataError at a bad row where `on_bad_row` is 'fail' (the first three are named), where
    more than `max_bad_rows` are bad, and where no row is left.
    """
    found = usable_rows(dataset, islice(records_of(dataset, split), limit))
    if not found.rows:
        raise DataError(
            "E103",
            f"the split '{split}' has no rows"
            + (f" left: {note}" if (note := found.note()) else ""),
            fix="check data.path and data.split",
        )
    return found


def usable_rows(
    dataset: Dataset[Any], records: Iterator[tuple[str, Mapping[str, Any]]], most: int | None = None
) -> Rows:
    """Return the usable rows of records, `most` of them and no record after the last of these.

    Raises DataError as `read_rows` does, but where no row is left.
    """
    found, unread, dropped = Rows([]), Unread(), Dropped(dataset.config.drop)
    strict = dataset.config.on_bad_row == "fail"
    while most is None or len(found.rows) < most:
        if (pair := next(records, None)) is None:
            break
        origin, record = pair
        try:
            record = unread.watched(replaced(dataset.config.replace, record, origin))
            if why := dropped.record(record, origin):
                raise LeftOutRow(origin, why)
            with noticing() as noticed:
                row = row_of(dataset, record, origin)
            unread.count(record, row)
            if why := dropped.row(row):
                raise LeftOutRow(origin, why)
            found.rows.append(row)
            found.met.update(noticed)
        except LeftOutRow as left_out:
            found.left_out[left_out.reason] += 1
        except DataError as error:
            found.skipped += 1
            if len(found.reasons) < KEPT:
                found.reasons.append(_short(error.faults[0].what))
                if strict and len(found.reasons) == 1:
                    first = error
    if strict and found.skipped:
        unreadable = first.faults[0].code == "E107"
        if not found.rows:
            raise DataError(
                "E107" if unreadable else "E102",
                f"none of {found.skipped} rows can be used: {found.reasons[0]}",
                fix=first.faults[0].fix,
            )
        more = "; ".join(found.reasons[1:_SHOWN])
        raise DataError(
            "E107" if unreadable else "E101",
            f"{found.skipped} of {found.seen} rows cannot be used:"
            f" {found.reasons[0]}" + (f"; {more}" if more else ""),
            fix=first.faults[0].fix or "correct the rows, or set data.on_bad_row: skip",
        )
    _refuse_too_many(found, dataset)
    found.unread = unread.columns
    return found


def _short(reason: str) -> str:
    """Return a reason, cut where a row's own text, such as its columns' names, makes it long."""
    return reason if len(reason) <= _LETTERS else f"{reason[:_LETTERS]} ..."


def leave_out(found: Rows, refused: Mapping[int, str], dataset: Dataset[Any]) -> None:
    """Take out rows, by number and with why, that turn out unusable once they are written.

    Raises DataError where more than `max_bad_rows` are, and where no row is left.
    """
    if not refused:
        return
    found.rows = [row for number, row in enumerate(found.rows) if number not in refused]
    found.skipped += len(refused)
    found.reasons += map(_short, list(refused.values())[: KEPT - len(found.reasons)])
    _refuse_too_many(found, dataset)
    if not found.rows:
        raise DataError("E102", f"no row is left: {found.note()}", fix="correct the rows")


def _refuse_too_many(found: Rows, dataset: Dataset[Any]) -> None:
    if found.skipped > dataset.config.max_bad_rows * found.seen:
        raise DataError(
            "E104",
            f"more than max_bad_rows: {dataset.config.max_bad_rows:g} of the rows cannot be used;"
            f" {found.note()}",
            fix="correct the rows, or raise data.max_bad_rows",
        )


@contextmanager
def at_source(key: KeyPath) -> Iterator[None]:
    """Let an error name the source that it is about, as the key of its block: data.sources.1."""
    try:
        yield
    except LlmftError as error:
        path = ".".join(map(str, key))
        raise type(error).of(
            [fault if fault.path else replace(fault, path=path) for fault in error.faults]
        ) from error
