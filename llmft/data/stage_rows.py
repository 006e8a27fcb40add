"""The rows of a stage: read through its data set's class, bad ones counted, some held out."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from typing import Any, Literal

from llmft.api import Conversation, Dataset, Row
from llmft.api.errors import DataError, LeftOutRow, LlmftError
from llmft.api.method_settings import DropRows
from llmft.data.conversation import noticing
from llmft.data.dropping import Dropped, by_length
from llmft.data.duplicates import prompt_of
from llmft.data.encoding import Encoder
from llmft.data.replacing import replaced
from llmft.data.unread import Unread
from llmft.recipes.recipe import Stage
from llmft.recipes.sources import source_names, sources_of
from llmft.recipes.tree import KeyPath
from llmft.registry.return_checks import mixture_of, pin_of, records_of, row_of

_SHOWN, _KEPT = 3, 1000  # reasons why a row cannot be used: in a line, and in a preview
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
            if len(found.reasons) < _KEPT:
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
    found.reasons += map(_short, list(refused.values())[: _KEPT - len(found.reasons)])
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


def stage_rows(
    stage: Stage, dataset: Dataset[Any], seed: int, encoder: Callable[[], Encoder] | None = None
) -> tuple[Rows, Rows | None]:
    """Return a stage's training rows, and the rows it is judged on where it is judged.

    encoder: gives what writes them as token ids; needed where rows that cannot be written are
    skipped, and where rows are dropped by their length. Of several sources each is read by its own
    settings, and the rows held out are those of each.
    """
    if not dataset.sources:
        pair = _split_rows(stage, dataset, seed, encoder)
        _repeat(stage, dataset, *pair, seed)
        return pair
    assert stage.data is not None  # it has sources
    names, keys = source_names(stage.data), sources_of(stage.data)
    together = stage.evaluate is not None and (stage.evaluate.holdout or 0) >= 1
    each = stage.model_copy(update={"evaluate": None}) if together else stage
    pairs = []
    for source, (key, _) in zip(dataset.sources, keys, strict=True):
        with at_source(key):
            pairs.append(_split_rows(each, source, seed, encoder))
    if together:
        assert stage.evaluate is not None
        asked, by = stage.evaluate.holdout or 0, stage.evaluate.holdout_by
        pairs = _held_out_together([pair[0] for pair in pairs], asked, seed, by)
    for source, pair in zip(dataset.sources, pairs, strict=True):
        _repeat(stage, source, *pair, seed)
    train = mixed(dataset, dict(zip(names, (pair[0] for pair in pairs), strict=True)), seed)
    if stage.evaluate is None:
        return train, None
    held_out = {name: pair[1] for name, pair in zip(names, pairs, strict=True) if pair[1]}
    return train, joined(held_out, stage.evaluate.limit)


def read_split(stage: Stage, dataset: Dataset[Any], split: str | None, limit: int | None) -> Rows:
    """Return the rows of a split, of every source; None: the one that each of them trains on."""
    if not dataset.sources:
        return read_rows(dataset, split or dataset.config.split, limit)
    assert stage.data is not None
    found = {}
    names, keys = source_names(stage.data), sources_of(stage.data)
    for name, source, (key, _) in zip(names, dataset.sources, keys, strict=True):
        with at_source(key):
            found[name] = read_rows(source, split or source.config.split, limit)
    return joined(found, limit)


def _split_rows(
    stage: Stage, dataset: Dataset[Any], seed: int, encoder: Callable[[], Encoder] | None
) -> tuple[Rows, Rows | None]:
    train, held_out = _read_both(stage, dataset, seed, encoder)
    for rows in (train, held_out):
        if rows is not None and encoder is not None:
            leave_out_by_tokens(rows, dataset, encoder)
    return train, held_out


def leave_out_by_tokens(found: Rows, dataset: Dataset[Any], encoder: Callable[[], Encoder]) -> None:
    """Take out rows that cannot be written where bad ones are skipped, and those of a length.

    Raises DataError where more than `max_bad_rows` are, and where no row is left.
    """
    if dataset.config.on_bad_row == "skip":
        leave_out(found, encoder().refusals(found.rows), dataset)
    if dataset.config.drop.by_length:
        _drop_by_length(found, dataset.config.drop, encoder())


def _drop_by_length(found: Rows, drop: DropRows, encoder: Encoder) -> None:
    most = max(drop.longer_than or 0, drop.shorter_than or 0)
    why = by_length(drop, encoder.lengths(found.rows, most))
    found.rows = [row for number, row in enumerate(found.rows) if number not in why]
    found.left_out.update(why.values())
    if not found.rows:
        raise DataError("E103", f"no row is left: {found.note()}", fix="change data.drop")


def _read_both(
    stage: Stage, dataset: Dataset[Any], seed: int, encoder: Callable[[], Encoder] | None
) -> tuple[Rows, Rows | None]:
    asked, config = stage.evaluate, dataset.config
    if config.streaming:
        some = islice(records_of(dataset, config.split), config.limit)
        train = usable_rows(dataset, some, config.buffer_size)
        if not train.rows:
            raise DataError(
                "E103", f"the split '{config.split}' has no rows", fix="check data.path"
            )
        train.pin = pin_of(dataset)
    else:
        train = read_rows(dataset, config.split, config.limit)
        if config.num_samples is not None:
            if encoder is not None:
                leave_out_by_tokens(train, dataset, encoder)  # so that the number stays
            train.rows = _drawn(train.rows, config.num_samples, seed)
    if asked is None:
        return train, None
    if asked.holdout:
        kept, held = hold_out(train.rows, asked.holdout, seed, asked.holdout_by)
        train = replace(train, rows=kept)
        return train, Rows(held[: asked.limit])
    split = asked.split or dataset.held_out_split
    return train, read_rows(dataset, split, asked.limit)


def _drawn(rows: list[Row], count: int | None, seed: int) -> list[Row]:
    """Return `count` rows drawn at random, in the order of the data; all where there are no more.

    The draw is that of `num_samples`, and the same at each call.
    """
    if count is None or count >= len(rows):
        return rows
    numbers = random.Random(f"{seed} num_samples").sample(range(len(rows)), count)
    return [rows[number] for number in sorted(numbers)]


def _repeat(
    stage: Stage, dataset: Dataset[Any], train: Rows, held_out: Rows | None, seed: int
) -> None:
    """Repeat training rows where `num_samples` is more than all rows: whole passes, then a draw.

    Rows that are held out of them are among the number, and are not repeated.
    """
    count = dataset.config.num_samples
    if count is None or not train.rows:
        return
    of_these = held_out is not None and stage.evaluate is not None and stage.evaluate.holdout
    wanted = count - (len(held_out.rows) if held_out is not None and of_these else 0)
    if wanted > len(train.rows):
        passes, rest = divmod(wanted, len(train.rows))
        train.rows = train.rows * passes + _drawn(train.rows, rest, seed)


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
        [reason for part in parts.values() for reason in part.reasons][:_KEPT],
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
        try:
            _check_first_rows(dataset, split)
        except DataError as error:
            at_evaluate = asked is not None and split == asked.split and split is not splits[0]
            if not at_evaluate or error.faults[0].code != "E109":
                raise
            raise DataError.of([replace(f, path="evaluate.split") for f in error.faults]) from error


def first_row(dataset: Dataset[Any]) -> Row | None:
    """Return the first usable row of a data set's split, of its first records; None: there is none.

    Raises DataError where the records cannot be read.
    """
    for origin, record in islice(records_of(dataset, dataset.config.split), FIRST_ROWS):
        try:
            return row_of(dataset, replaced(dataset.config.replace, record, origin), origin)
        except (LeftOutRow, DataError):
            continue
    return None


def _check_first_rows(dataset: Dataset[Any], split: str) -> None:
    seen, usable, fault = 0, 0, None
    for origin, record in islice(records_of(dataset, split), FIRST_ROWS):
        seen += 1
        try:
            row_of(dataset, replaced(dataset.config.replace, record, origin), origin)
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


def _held_out_together(
    sources: Sequence[Rows], count: float, seed: int, by: Literal["row", "prompt"]
) -> list[tuple[Rows, Rows | None]]:
    """Return what stays of each source and what is held out, so many rows of all together."""
    every = [row for source in sources for row in source.rows]
    _, held = hold_out(every, count, seed, by)
    out = {id(row) for row in held}
    pairs: list[tuple[Rows, Rows | None]] = []
    for source in sources:
        kept = [row for row in source.rows if id(row) not in out]
        mine = [row for row in source.rows if id(row) in out]
        pairs.append((replace(source, rows=kept), Rows(mine) if mine else None))
    return pairs


def hold_out(
    rows: Sequence[Row], asked: float, seed: int, by: Literal["row", "prompt"] = "row"
) -> tuple[list[Row], list[Row]]:
    """Return the rows that stay and the rows held out, at least one of each; order is kept.

    asked: how many are held out; below 1, which share. by: draw rows, or prompts with all of their
    rows, until there are so many rows; one prompt stays in any case.
    """
    if len(rows) < 2:
        raise DataError("E103", "there is only one row, so none can be held out")
    if asked >= len(rows):
        what = (
            f"evaluate.holdout takes {asked:,} rows of {len(rows):,}, and none is left to train on"
        )
        raise DataError("E103", what, fix="write fewer, or a share such as 0.1")
    count = int(asked) if asked >= 1 else min(max(1, round(len(rows) * asked)), len(rows) - 1)
    if by == "row":
        held = set(random.Random(seed).sample(range(len(rows)), count))
    else:
        held = _of_whole_prompts(rows, count, seed)
    return (
        [row for i, row in enumerate(rows) if i not in held],
        [row for i, row in enumerate(rows) if i in held],
    )


def _of_whole_prompts(rows: Sequence[Row], count: int, seed: int) -> set[int]:
    """Return the numbers of `count` rows or a few more: all of those of the prompts drawn."""
    groups: dict[tuple[str, int | None], list[int]] = {}
    for number, row in enumerate(rows):
        prompt = prompt_of(row)
        key = ("row", number) if prompt is None else ("prompt", prompt)
        groups.setdefault(key, []).append(number)
    if len(groups) < 2:
        raise DataError(
            "E103",
            "all rows have the same prompt, so none can be held out by its prompt",
            fix="write evaluate.holdout_by: row, or name another split",
        )
    held: set[int] = set()
    drawn = list(groups.values())
    random.Random(seed).shuffle(drawn)
    for group in drawn[1:]:
        if len(held) >= count:
            break
        held.update(group)
    return held
