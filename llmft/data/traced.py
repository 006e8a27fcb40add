"""Text that carries where it comes from, through what chat templates do with text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any, NamedTuple, SupportsIndex


class Run(NamedTuple):
    """Characters start to stop of a text, which come from `begin` to `end` of a field."""

    start: int
    stop: int
    field: int
    begin: int
    end: int

    def moved(self, by: int) -> Run:
        """Return the run of a text that has so many more characters before it."""
        return Run(self.start + by, self.stop + by, *self[2:])

    def within(self, start: int, stop: int) -> Run | None:
        """Return what is left of the run in a slice, counted from the slice's start."""
        first, last = max(self.start, start), min(self.stop, stop)
        if first >= last:
            return None
        begin, end = self.begin, self.end
        if self.stop - self.start == end - begin:  # one character for each: cut the field too
            begin, end = begin + first - self.start, begin + last - self.start
        return Run(first - start, last - start, self.field, begin, end)


@dataclass
class Trace:
    """The fields of a conversation, and what a rendering did with them.

    texts: the fields' texts. consumed: parts of fields that a template read as its own markup and
    wrote anew. printed: fields that were written as Python's representation.
    """

    texts: list[str] = field(default_factory=list)
    consumed: list[Run] = field(default_factory=list)
    printed: set[int] = field(default_factory=set)

    def text(self, text: str, number: int | None = None) -> Traced:
        """Return a text as a new field, or as another copy of field `number`."""
        if number is None:
            number = len(self.texts)
            self.texts.append(text)
        return _traced(text, [Run(0, len(text), number, 0, len(text))], self)

    def consume(self, text: Traced, start: int, stop: int) -> None:
        """Note that a template has read part of a text as markup."""
        self.consumed += _cut(text.runs, start, stop)


class Traced(str):
    """A string with the runs of its characters that come from fields."""

    runs: Sequence[Run]
    trace: Trace

    def __str__(self) -> str:
        return self

    def __repr__(self) -> str:
        self.trace.printed.update(run.field for run in self.runs)
        return super().__repr__()

    def __add__(self, other: Any) -> Any:
        return join("", (self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: Any) -> Any:
        return join("", (other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> str:
        return join("", [self] * int(times))

    __rmul__ = __mul__

    def __rmod__(self, form: str) -> str:
        before, mark, after = form.partition("%s")
        plain = mark and "%" not in before + after
        return join("", (before, self, after)) if plain else form % (str.__str__(self),)

    def __getitem__(self, key: Any) -> str:
        if not isinstance(key, slice):
            start = index(key)
            start += len(self) if start < 0 else 0
            super().__getitem__(start)
            return self.cut(start, start + 1)
        start, stop, step = key.indices(len(self))
        return self.cut(start, max(start, stop)) if step == 1 else super().__getitem__(key)

    def __iter__(self) -> Iterator[str]:
        return (self.cut(i, i + 1) for i in range(len(self)))

    def cut(self, start: int, stop: int) -> str:
        """Return characters start to stop."""
        if start == 0 and stop == len(self):
            return self
        text = str.__getitem__(self, slice(start, stop))
        return _traced(text, _cut(self.runs, start, stop), self.trace)

    def strip(self, chars: str | None = None, /) -> str:
        start = len(self) - len(super().lstrip(chars))
        return self.cut(start, max(start, len(super().rstrip(chars))))

    def lstrip(self, chars: str | None = None, /) -> str:
        return self.cut(len(self) - len(super().lstrip(chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> str:
        return self.cut(0, len(super().rstrip(chars)))

    def removeprefix(self, prefix: str, /) -> str:
        return self.cut(self._markup(0, prefix) if self.startswith(prefix) else 0, len(self))

    def removesuffix(self, suffix: str, /) -> str:
        if not suffix or not self.endswith(suffix):
            return self
        self._markup(len(self) - len(suffix), suffix)
        return self.cut(0, len(self) - len(suffix))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._pieces(super().split(sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._pieces(super().rsplit(sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        lines, start = [], 0
        for whole, shown in zip(
            super().splitlines(True), super().splitlines(keepends), strict=True
        ):
            lines.append(self.cut(start, start + len(shown)))
            start += len(whole)
        return lines

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        return self._parted(self.find(sep), sep, (self, "", ""))

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        return self._parted(self.rfind(sep), sep, ("", "", self))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        if not old:
            return super().replace(old, new, count)
        pieces = self._pieces(super().split(old, count), old, consume=False)
        made: list[str] = []
        at = 0
        for number, piece in enumerate(pieces):
            if number:  # another wording of the same text, unless it is taken out
                runs = runs_of(self.cut(at, at + len(old))) if new else ()
                made.append(_traced(new, [Run(0, len(new), *run[2:]) for run in runs], self.trace))
                at += len(old)
            made.append(piece)
            at += len(piece)
        return join("", made)

    def upper(self) -> str:
        return self._recased(super().upper())

    def lower(self) -> str:
        return self._recased(super().lower())

    def casefold(self) -> str:
        return self._recased(super().casefold())

    def capitalize(self) -> str:
        return self._recased(super().capitalize())

    def title(self) -> str:
        return self._recased(super().title())

    def swapcase(self) -> str:
        return self._recased(super().swapcase())

    def join(self, parts: Iterable[str], /) -> str:
        return join(self, parts)

    def _recased(self, text: str) -> str:
        return _traced(text, self.runs, self.trace) if len(text) == len(self) else text

    def _parted(self, at: int, sep: str, absent: tuple[str, str, str]) -> tuple[str, str, str]:
        if at < 0:
            return absent
        stop = self._markup(at, sep)
        return self.cut(0, at), self.cut(at, stop), self.cut(stop, len(self))

    def _markup(self, start: int, sep: str) -> int:
        """Note that a template reads a separator of its own here, and return where it ends."""
        self.trace.consume(self, start, start + len(sep))
        return start + len(sep)

    def _pieces(self, texts: Sequence[str], sep: str | None, consume: bool = True) -> list[str]:
        pieces, at = [], 0
        for number, text in enumerate(texts):
            if sep is None:
                at = self.find(text, at)
            elif number:
                if consume:
                    self._markup(at, sep)
                at += len(sep)
            pieces.append(self.cut(at, at + len(text)))
            at += len(text)
        return pieces


def runs_of(text: str) -> Sequence[Run]:
    """Return where a text's characters come from; of a plain string nothing is known."""
    return text.runs if isinstance(text, Traced) else ()


def join(separator: str, parts: Iterable[Any]) -> str:
    """Return what `separator.join(parts)` does, with the runs of all of them."""
    runs: list[Run] = []
    trace, at = None, 0
    texts: list[str] = list(parts)
    between = len(separator)
    for number, part in enumerate(texts):
        pieces = (separator, part) if number and between else (part,)
        for piece in pieces:
            if isinstance(piece, Traced):
                trace = piece.trace
                runs += [run.moved(at) for run in piece.runs] if at else piece.runs
            at += len(piece)
    text = str.join(separator, texts)
    return text if trace is None else _traced(text, runs, trace)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return what `json.dumps` does, with the runs of the strings in it."""
    between, colon = separators or ((", ", ": ") if indent is None else (",", ": "))
    space = " " * indent if isinstance(indent, int) else indent

    def written(value: Any, depth: int) -> str:
        if isinstance(value, str):
            return join("", ('"', _escaped(value, ensure_ascii), '"'))
        if isinstance(value, dict):
            items = sorted(value.items()) if sort_keys else value.items()
            inner = [
                join("", (written(key if isinstance(key, str) else json.dumps(key), depth), colon,
                          written(item, depth + 1)))
                for key, item in items
            ]  # fmt: skip
            return wrapped("{", inner, "}", depth)
        if isinstance(value, list | tuple):
            return wrapped("[", [written(item, depth + 1) for item in value], "]", depth)
        return json.dumps(value, ensure_ascii=ensure_ascii)

    def wrapped(opening: str, inner: list[str], closing: str, depth: int) -> str:
        if not inner:
            return opening + closing
        line, last = ("", "") if space is None else (
            "\n" + space * (depth + 1), "\n" + space * depth
        )  # fmt: skip
        return join("", (opening, line, join(between + line, inner), last, closing))

    return written(value, 0)


def _escaped(text: str, ensure_ascii: bool) -> str:
    plain = json.dumps(text, ensure_ascii=ensure_ascii)[1:-1]
    if not isinstance(text, Traced) or plain == text:
        return text if plain == text else plain
    pieces = []
    for number in range(len(text)):
        letter = text.cut(number, number + 1)
        shown = json.dumps(letter, ensure_ascii=ensure_ascii)[1:-1]
        runs = [Run(0, len(shown), *run[2:]) for run in runs_of(letter)]
        pieces.append(_traced(shown, runs, text.trace))
    return join("", pieces)


def _cut(runs: Sequence[Run], start: int, stop: int) -> list[Run]:
    return [left for run in runs if (left := run.within(start, stop))]


def _traced(text: str, runs: Sequence[Run], trace: Trace) -> Traced:
    made = Traced(text)
    made.runs, made.trace = runs, trace
    return made


_BLANK = re.compile(r"\s+")


def missing(text: str, trace: Trace) -> dict[int, str]:
    """Return the fields that a rendering leaves out, each with 'all' or 'part'; blanks are free."""
    parts: dict[int, list[tuple[int, int]]] = {}
    for run in (*runs_of(text), *trace.consumed):
        parts.setdefault(run.field, []).append((run.begin, run.end))
    lost = {}
    for number, value in enumerate(trace.texts):
        if left := _BLANK.sub("", _outside(value, sorted(parts.get(number, ())))):
            lost[number] = "part" if len(left) < len(_BLANK.sub("", value)) else "all"
    return lost


def _outside(text: str, parts: Sequence[tuple[int, int]]) -> str:
    left, at = [], 0
    for begin, end in parts:
        left.append(text[at:begin])
        at = max(at, end)
    return "".join((*left, text[at:]))
