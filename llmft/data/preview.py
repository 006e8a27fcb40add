"""Rows as they are trained on: their text with special tokens, what is learnt, what is lost."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from llmft.api import ChatRow, Encoded, EncodedPair, EncodedPrompt, Row
from llmft.api.errors import Fault
from llmft.api.rows import IGNORED
from llmft.data.duplicates import Duplicates
from llmft.data.encoding_report import EncodingReport
from llmft.data.shown_rows import Item, Part, Piece, ShownRow, shown_row, texts_of, token_rows
from llmft.data.usable_rows import Rows

PICKS = ("first", "longest", "cut", "dropped", "random")
"""Why a row is shown."""
_BARS = 12
_LONG = 200_000  # characters of a row that is not worth tokenising whole to show what is lost
_DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class SourcePreview:
    """What one of several sources gives to a stage; names as of `StagePreview`.

    rows: those that can be used. drawn: how many of the stage's rows are of this source. repeats:
    rows that say the same as another one, of whichever source. held_out: rows that are scored on.
    """

    name: str
    read: int
    rows: int
    drawn: int
    items: int
    tokens: int
    trained_tokens: int
    counts: Mapping[str, int]
    skipped: int = 0
    skipped_reasons: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    repeats: int = 0
    unread: Mapping[str, int] = field(default_factory=dict)
    held_out: int = 0


@dataclass(frozen=True, slots=True)
class StagePreview:
    """What a stage trains on. comes_from: the stage that has yet to make its rows.

    read: records of the training split. made: token rows that were made of them, of which `counts`
    says what was lost, by reason. sources: where the rows are of several. remarks: what else was
    met, and how often. items: token rows (or pairs, or prompts) that are trained on. split_rows:
    rows that made one token row for each turn; None where no row is a conversation. lengths: of an
    item's longest row, in tokens. histogram: (from, to, items). unread: by split, columns that
    nobody looks at, and in how many rows they are. refused: why a run would stop here.
    """

    name: str
    method: str
    data: str
    kind: str = ""
    comes_from: str = ""
    read: int = 0
    made: int = 0
    skipped: int = 0
    skipped_reasons: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    sources: tuple[SourcePreview, ...] = ()
    remarks: Mapping[str, int] = field(default_factory=dict)
    items: int = 0
    split_rows: int | None = None
    tokens: int = 0
    trained_tokens: int = 0
    max_length: int | None = None
    lengths: Mapping[str, int] = field(default_factory=dict)
    histogram: tuple[tuple[int, int, int], ...] = ()
    duplicates: Duplicates | None = None
    held_out: int = 0
    held_out_skipped: int = 0
    held_out_reasons: tuple[str, ...] = ()
    unread: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    refused: Fault | None = None
    notes: tuple[str, ...] = ()
    rows: tuple[ShownRow, ...] = ()

    @property
    def dropped(self) -> int:
        """Rows that are lost because of what they hold as tokens."""
        return sum(n for why, n in self.counts.items() if why.startswith(_DROPPED))

    @property
    def cut(self) -> int:
        """Rows that lost a part."""
        return sum(self.counts.values()) - self.dropped


@dataclass(frozen=True)
class Seen:
    """What of a stage is previewed.

    items: what it trains on, in order. encode: makes items of rows, uncut.
    """

    train: Rows
    held_out: Rows | None
    items: Sequence[Item]
    report: EncodingReport
    tokenizer: Any
    max_length: int | None
    encode: Callable[[Sequence[Row]], Sequence[Item]]
    duplicates: Duplicates


def stage_preview(
    seen: Seen,
    *,
    picks: int,
    seed: int,
    only: Sequence[str] = PICKS,
    name: str = "",
    method: str = "",
    data: str = "",
    refused: Fault | None = None,
    notes: Sequence[str] = (),
) -> StagePreview:
    """Return what a stage trains on, with so many picked rows of each kind in `only`."""
    train, items, report = seen.train, seen.items, seen.report
    lengths = [max(len(row.input_ids) for row in token_rows(item)) for item in items]
    held_out = seen.held_out.rows if seen.held_out else ()
    unread = {"train": train.unread, "held-out": seen.held_out.unread if seen.held_out else {}}
    return StagePreview(
        name=name,
        method=method,
        data=data,
        kind=kind_of(items),
        read=train.seen,
        made=report.rows,
        skipped=train.skipped,
        skipped_reasons=tuple(train.reasons),
        left_out=dict(train.left_out),
        counts=dict(report.counts),
        sources=tuple(_sources(seen)),
        remarks={**_met(train), **report.remarks},
        items=len(items),
        split_rows=_split_rows(train.rows, items),
        tokens=sum(len(row.input_ids) for item in items for row in token_rows(item)),
        trained_tokens=sum(_trained(row) for item in items for row in token_rows(item)),
        max_length=seen.max_length,
        lengths=_summary(lengths),
        histogram=histogram(lengths),
        duplicates=seen.duplicates,
        held_out=len(held_out),
        held_out_skipped=seen.held_out.skipped if seen.held_out else 0,
        held_out_reasons=tuple(seen.held_out.reasons) if seen.held_out else (),
        unread={split: columns for split, columns in unread.items() if columns},
        refused=refused,
        notes=tuple(notes),
        rows=tuple(_picked(seen, lengths, picks, seed, only)),
    )


def _met(rows: Rows) -> Counter[str]:
    return sum((_met(part) for part in rows.sources.values()), Counter(rows.met))


def _sources(seen: Seen) -> Iterator[SourcePreview]:
    of = seen.train.of_source
    drawn = Counter(of[row.origin] for row in seen.train.rows) if of else Counter[str]()
    items, tokens, trained = Counter[str](), Counter[str](), Counter[str]()
    for item in seen.items if of else ():
        name = of.get(item.origin, "")
        items[name] += 1
        tokens[name] += sum(len(row.input_ids) for row in token_rows(item))
        trained[name] += sum(_trained(row) for row in token_rows(item))
    for name, part in seen.train.sources.items():
        judged = seen.held_out.sources.get(name) if seen.held_out else None
        lost = {
            why: sum(of.get(origin) == name for origin in origins)
            for why, origins in seen.report.lost.items()
        }
        yield SourcePreview(
            name,
            part.seen,
            len(part.rows),
            drawn[name],
            items[name],
            tokens[name],
            trained[name],
            {why: count for why, count in lost.items() if count},
            part.skipped,
            tuple(part.reasons),
            dict(part.left_out),
            seen.duplicates.of_source.get(name, 0),
            dict(part.unread),
            len(judged.rows) if judged else 0,
        )


def kind_of(items: Sequence[Item]) -> str:
    """Return what items are called: 'pairs', 'prompts' or 'rows'."""
    if items and isinstance(items[0], EncodedPair):
        return "pairs"
    return "prompts" if items and isinstance(items[0], EncodedPrompt) else "rows"


def histogram(lengths: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Return (from, to, how many) over round widths, at most 12 of them; both ends are included."""
    if not lengths:
        return ()
    least, most = min(lengths), max(lengths)
    widths = (step * 10**power for power in range(12) for step in (1, 2, 5))
    width = next(w for w in widths if most // w - least // w < _BARS)
    counts = Counter(length // width for length in lengths)
    bins = range(least // width, most // width + 1)
    return tuple((b * width, (b + 1) * width - 1, counts[b]) for b in bins)


def _summary(lengths: Sequence[int]) -> dict[str, int]:
    if not lengths:
        return {}
    ordered = sorted(lengths)
    last = len(ordered) - 1
    return {
        "least": ordered[0],
        "median": ordered[last // 2],
        "p95": ordered[round(last * 0.95)],
        "most": ordered[-1],
    }


def _trained(row: Encoded) -> int:
    """Return `n_labels`, of many rows sooner."""
    learnt = len(row.labels) - row.labels.count(IGNORED)
    return learnt - (row.labels[:1] not in ((), (IGNORED,)))


def _split_rows(rows: Sequence[Row], items: Sequence[Item]) -> int | None:
    if not any(isinstance(row, ChatRow) for row in rows):
        return None
    return sum(len(list(parts)) > 1 for origin, parts in _by_origin(items) if origin)


def _by_origin(items: Sequence[Item]) -> Iterator[tuple[str, Iterator[int]]]:
    """Yield the numbers of the items that one row made, which follow one another."""
    return groupby(range(len(items)), key=lambda number: items[number].origin)


# --- which rows are shown -------------------------------------------------------------------------


def _picked(
    seen: Seen, lengths: Sequence[int], picks: int, seed: int, only: Sequence[str]
) -> Iterator[ShownRow]:
    items, lost = seen.items, _lost(seen.report)
    cut = {origin: why for origin, why in lost.items() if not why.startswith(_DROPPED)}
    chosen: dict[int, list[str]] = {}
    longest = sorted(range(len(items)), key=lambda number: -lengths[number])
    order = random.Random(seed).sample(range(len(items)), min(len(items), picks * len(PICKS)))
    found = {
        "first": list(range(min(picks, len(items)))),
        "longest": longest[:picks],
        "cut": _longest_of(items, lengths, list(cut)[:picks]),
    }
    for kind in PICKS:
        if kind in only and kind in found:
            for number in found[kind]:
                chosen.setdefault(number, []).append(kind)
    if "random" in only:
        for number in [number for number in order if number not in chosen][:picks]:
            chosen[number] = ["random"]
    origins = [origin for origin, why in lost.items() if why.startswith(_DROPPED)][:picks]
    origins = origins if "dropped" in only else []
    wanted = {items[number].origin for number in chosen} | set(origins)
    rows = {row.origin: row for row in seen.train.rows if row.origin in wanted}
    turns = _turns(items, wanted) if isinstance(items[0] if items else None, Encoded) else {}
    for number, picked in chosen.items():
        item = items[number]
        row, why = rows.get(item.origin), cut.get(item.origin, "")
        whole = _whole(seen, row) if why and row is not None else None
        yield shown_row(seen.tokenizer, item, row, tuple(picked), turns.get(number, ""), why, whole)
    for origin in origins:
        if (row := rows.get(origin)) is not None:
            yield _dropped(seen, row, lost[origin])


def _lost(report: EncodingReport) -> dict[str, str]:
    """Return what happened to the rows that were cut or dropped, by origin."""
    return {origin: why for why, origins in report.lost.items() for origin in origins if origin}


def _longest_of(items: Sequence[Item], lengths: Sequence[int], origins: Sequence[str]) -> list[int]:
    """Return the longest item of each row."""
    wanted, found = set(origins), dict[str, int]()
    for number, item in enumerate(items):
        if item.origin in wanted:
            before = found.get(item.origin)
            if before is None or lengths[number] > lengths[before]:
                found[item.origin] = number
    return [found[origin] for origin in origins if origin in found]


def _turns(items: Sequence[Item], origins: set[str]) -> dict[int, str]:
    """Return which turn an item is, for those of rows that made several."""
    found: dict[int, str] = {}
    for origin, numbers in _by_origin(items):
        if origin and origin in origins and len(several := list(numbers)) > 1:
            found |= {number: f"{at} of {len(several)}" for at, number in enumerate(several, 1)}
    return found


def _whole(seen: Seen, row: Row) -> Sequence[Item]:
    """Return a row's items uncut; none where it is huge, or cannot be encoded at all."""
    return seen.encode([row]) if sum(map(len, texts_of(row))) <= _LONG else ()


def _dropped(seen: Seen, row: Row, why: str) -> ShownRow:
    whole = _whole(seen, row)
    if whole:
        return shown_row(seen.tokenizer, whole[0], row, ("dropped",), "", why, whole)
    pieces = tuple(Piece(text) for text in texts_of(row))
    return ShownRow(row.origin, ("dropped",), (Part("", pieces, 0, 0),), lost=why)
