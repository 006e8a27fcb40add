"""Splits and parts of them, as `datasets` writes them: train[:20%], train[100:200], train+test."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_SIGNS = re.compile(r"[\[\]()+:%]")
_BOUND = r"(?P<{0}>-?[0-9][0-9_]*)?(?P<{0}_pct>(?<=[0-9_])%)?"
_PART = re.compile(
    r"(?P<name>[^\[\]()+:%\s]+)"
    rf"(\[{_BOUND.format('start')}:{_BOUND.format('stop')}\])?"
    r"(\((?P<rounding>[^)]*)\))?"
)
_LOOSE = re.compile(r"(?P<name>[^\[\]()+:%\s]+)\s*\[\s*(?P<inside>[^\[\]]*?)\s*\]?\s*")
_ROUNDINGS = ("closest", "pct1_dropremainder")


@dataclass(frozen=True, slots=True)
class SplitPart:
    """A split, or a part of it: rows from `start` to before `stop`.

    A number below 0 counts from the end; None: from the first, or to the last. percent: they are
    percentages of the split's rows. drops: a percent is a hundredth of them, rounded down
    (`pct1_dropremainder`); else each bound is rounded to the closest row.
    """

    name: str
    start: int | None = None
    stop: int | None = None
    percent: bool = False
    drops: bool = False

    @property
    def needs_count(self) -> bool:
        """Whether the bounds are known only where the number of the split's rows is."""
        return self.percent or any(bound is not None and bound < 0 for bound in self.bounds)

    @property
    def bounds(self) -> tuple[int | None, int | None]:
        """The bounds as they are written."""
        return self.start, self.stop

    def within(self, count: int) -> tuple[int, int]:
        """Return the first row and the one after the last, from 0, of so many rows."""
        start = 0 if self.start is None else self._row(self.start, count)
        stop = count if self.stop is None else self._row(self.stop, count)
        return start, max(start, stop)

    def _row(self, bound: int, count: int) -> int:
        if self.percent:
            bound = bound * (count // 100) if self.drops else round(bound * count / 100)
        return min(max(count + bound, 0) if bound < 0 else bound, count)


def split_parts(text: str) -> tuple[SplitPart, ...]:
    """Return the parts of a split, in the order in which their rows come.

    A text without any of `[]()+:%` is a name. Raises ValueError with what is wrong; and the fix.
    """
    if not _SIGNS.search(text):
        return (SplitPart(text),)
    return tuple(_part(one, text) for one in re.split(r"\s*\+\s*", text.strip()))


def checked_split(text: str) -> str:
    """Return a split as it is written; ValueError where it is none."""
    split_parts(text)
    return text


def _part(text: str, whole: str) -> SplitPart:
    found = _PART.fullmatch(text)
    if found is None:
        raise ValueError(f"'{whole}' is no split as datasets writes it; {_meant(text)}")
    start, stop = (None if found[key] is None else int(found[key]) for key in ("start", "stop"))
    percent = bool(found["start_pct"] or found["stop_pct"])
    mixed = (start and not found["start_pct"]) or (stop and not found["stop_pct"])
    if percent and mixed:
        raise ValueError(
            f"'{whole}' has a percentage and a number of rows for bounds; write % at both"
        )
    if percent and any(abs(bound or 0) > 100 for bound in (start, stop)):
        raise ValueError(f"'{whole}' has a percentage that is not within -100 and 100; correct it")
    rounding = found["rounding"]
    if rounding is not None and (rounding not in _ROUNDINGS or not percent):
        raise ValueError(
            f"'{whole}' has a rounding other than {' or '.join(_ROUNDINGS)} of percentages; drop it"
        )
    return SplitPart(found["name"], start, stop, percent, rounding == _ROUNDINGS[1])


def _meant(text: str) -> str:
    """Return what to write in place of a part that cannot be read."""
    usual = "write such as train[:20%], train[100:200] or train+validation"
    loose = _LOOSE.fullmatch(text.strip())
    if loose is None:
        return usual
    start, colon, stop = loose["inside"].partition(":")
    if not colon:
        start, stop = "", start
    bounds = [_bound(bound.strip()) for bound in (start, stop)]
    if None in bounds or not any(bounds):
        return usual
    return f"write {loose['name']}[{bounds[0]}:{bounds[1]}]"


def _bound(text: str) -> str | None:
    """Return a bound that is meant: 20% for '20 %' and for 0.2; None where it cannot be told."""
    if re.fullmatch(r"(-?\d+\s*%?)?", text):
        return text.replace(" ", "")
    try:
        share = float(text.removesuffix("%").strip())
    except ValueError:
        return None
    if text.endswith("%"):
        return f"{round(share)}%" if math.isfinite(share) else None
    return f"{round(share * 100)}%" if 0 < abs(share) < 1 else None
