"""The rows of a stage: read through its data set's class, bad ones counted, some held out."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from typing import Any

from llmft.api import Conversation, Dataset, Row
from llmft.api.errors import DataError, LeftOutRow
from llmft.data.unread import Unread
from llmft.recipes.recipe import Stage
from llmft.registry.return_checks import records_of, row_of

_SHOWN, _NAMES = 3, 10
_CHOICES = ("learn", "turns", "skip", "message", "special_tokens")


@dataclass
class Rows:
    """The rows of one split, what was skipped as bad, and what a stated rule left out.

    unread: columns and keys that the data set never looked at, and in how many rows they are.
    """

    rows: list[Row]
    skipped: int = 0
    reasons: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    unread: dict[str, int] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Return a SHA-256 over the rows as they are used, origins left out."""
        hasher = hashlib.sha256()
        for row in self.rows:
            said = json.dumps(_said(row), ensure_ascii=False, sort_keys=True)
            hasher.update(said.encode())
        return hasher.hexdigest()

    def note(self) -> str:
        """Return what a person should know about skipped rows, or ''."""
        said = []
        if self.skipped:
            share = self.skipped / self.seen
            shown = "; ".join(self.reasons)
            said.append(f"skipped {self.skipped} of {self.seen} rows ({share:.1%}): {shown}")
        if self.left_out:
            counts = ", ".join(f"{n} {reason}" for reason, n in sorted(self.left_out.items()))
            said.append(f"left out of {self.seen} rows: {counts}")
        return "; ".join(said)

    def unread_note(self) -> str:
        """Return which columns and keys nobody reads, or ''."""
        if not self.unread:
            return ""
        names = list(self.unread)
        more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
        return f"not read: {', '.join(repr(name) for name in names[:_NAMES])}{more}"

    @property
    def seen(self) -> int:
        """The number of records that were read."""
        return len(self.rows) + self.skipped + self.left_out.total()


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
    found, unread = Rows([]), Unread()
    strict = dataset.config.on_bad_row == "fail"
    for origin, record in islice(records_of(dataset, split), limit):
        record = unread.watched(record)
        try:
            found.rows.append(row_of(dataset, record, origin))
            unread.count(record, found.rows[-1])
        except LeftOutRow as row:
            found.left_out[row.reason] += 1
        except DataError as error:
            found.skipped += 1
            if len(found.reasons) < _SHOWN:
                found.reasons.append(error.faults[0].what)
                if strict and len(found.reasons) == 1:
                    first = error
    if strict and found.skipped:
        if not found.rows:
            raise DataError(
                "E102",
                f"none of {found.skipped} rows can be used: {found.reasons[0]}",
                fix=first.faults[0].fix,
            )
        more = "; ".join(found.reasons[1:])
        raise DataError(
            "E101",
            f"{found.skipped} of {found.seen} rows cannot be used:"
            f" {found.reasons[0]}" + (f"; {more}" if more else ""),
            fix=first.faults[0].fix or "correct the rows, or set data.on_bad_row: skip",
        )
    _refuse_too_many(found, dataset)
    if not found.rows:
        raise DataError(
            "E103",
            f"the split '{split}' has no rows"
            + (f" left: {note}" if (note := found.note()) else ""),
            fix="check data.path and data.split",
        )
    found.unread = unread.columns
    return found


def leave_out(found: Rows, refused: Mapping[int, str], dataset: Dataset[Any]) -> None:
    """Take out rows, by number and with why, that turn out unusable once they are written.

    Raises DataError where more than `max_bad_rows` are, and where no row is left.
    """
    if not refused:
        return
    found.rows = [row for number, row in enumerate(found.rows) if number not in refused]
    found.skipped += len(refused)
    found.reasons += list(refused.values())[: _SHOWN - len(found.reasons)]
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


def stage_rows(stage: Stage, dataset: Dataset[Any], seed: int) -> tuple[Rows, Rows | None]:
    """Return a stage's training rows, and the rows it is judged on where it is judged."""
    train = read_rows(dataset, dataset.config.split, dataset.config.limit)
    asked = stage.evaluate
    if asked is None:
        return train, None
    if asked.holdout:
        kept, held = hold_out(train.rows, asked.holdout, seed)
        train = replace(train, rows=kept)
        return train, Rows(held[: asked.limit])
    split = asked.split or dataset.held_out_split
    return train, read_rows(dataset, split, asked.limit)


def row_digests(train: Rows, judged: Rows | None) -> dict[str, str]:
    """Return the SHA-256 of the rows that a stage uses, as its identity and the lock have them."""
    return {"train": train.digest} | ({"evaluate": judged.digest} if judged else {})


FIRST_ROWS = 20
"""Rows of each split that are read before a run starts."""


def check_rows(dataset: Dataset[Any], stage: Stage) -> None:
    """Raise DataError where the first rows of a split that a stage reads cannot be used.

    Where bad rows are skipped, all of the first ones have to be bad.
    """
    asked = stage.evaluate
    splits = [dataset.config.split]
    if asked and not asked.holdout:
        splits.append(asked.split or dataset.held_out_split)
    for split in splits:
        seen, usable, fault = 0, 0, None
        for origin, record in islice(records_of(dataset, split), FIRST_ROWS):
            seen += 1
            try:
                row_of(dataset, record, origin)
            except LeftOutRow:
                pass
            except DataError as error:
                fault = fault or error
                if dataset.config.on_bad_row == "fail":
                    raise
                continue
            usable += 1
        if not seen:
            raise DataError("E103", f"the split '{split}' has no rows", fix="check data.path")
        if fault is not None and not usable:
            raise fault


def hold_out(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Return the rows that stay and the rows held out, at least one of each; order is kept."""
    if len(rows) < 2:
        raise DataError("E103", "there is only one row, so none can be held out")
    count = min(max(1, round(len(rows) * share)), len(rows) - 1)
    held = set(random.Random(seed).sample(range(len(rows)), count))
    return (
        [row for i, row in enumerate(rows) if i not in held],
        [row for i, row in enumerate(rows) if i in held],
    )
