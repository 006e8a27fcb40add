"""Token ids of a text of any length, window by window, as of the whole text.

A tokenizer takes some hundred bytes for each token of a text, and minutes in one go for a book
shelf. Windows overlap, and one takes over from the other where both have the same tokens around.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

WINDOW = 2**17
"""Characters of a window; a text of fewer than two of them is tokenised whole."""
_MARGIN = 1000  # characters that a window reads on either side
_SAME = 8  # so many tokens have to agree on either side of where a window takes over
_AT_ONCE = 16  # windows that are tokenised together, as the tokenizer uses several processors

Located = tuple[Sequence[int], Sequence[int]]
"""A text's ids, and the first character of each token."""


@dataclass
class _Window:
    """The tokens of a part of a text. begin: the first of them that no window before has."""

    low: int
    high: int
    ids: Sequence[int]
    starts: Sequence[int]
    begin: int = 0


def ids_in_windows(
    text: str,
    read: Callable[[Sequence[str]], Sequence[Located]],
    window: int = WINDOW,
    margin: int = _MARGIN,
) -> Iterator[Sequence[int]]:
    """Yield a text's token ids, in order, a window at a time.

    read: gives the ids of texts as parts of a longer one, without special tokens around them. Where
    two windows do not agree around their border, both are read as one.
    """
    lows = range(0, len(text), window)
    spans = [(max(low - margin, 0), min(low + window + margin, len(text))) for low in lows]
    last: _Window | None = None
    for at in range(0, len(spans), _AT_ONCE):
        some = spans[at : at + _AT_ONCE]
        found = read([text[low:high] for low, high in some])
        for (low, high), (ids, starts) in zip(some, found, strict=True):
            now = _Window(low, high, ids, starts)
            if last is None:
                last = now
                continue
            meeting = _meeting(last, now, low + margin, margin // 2)
            if meeting is None:
                ((ids, starts),) = read([text[last.low : high]])
                last = _Window(last.low, high, ids, starts, last.begin)
                continue
            yield last.ids[last.begin : meeting[0]]
            now.begin, last = meeting[1], now
    if last is not None:
        yield last.ids[last.begin :]


def _meeting(a: _Window, b: _Window, around: int, reach: int) -> tuple[int, int] | None:
    """Return the number, in each of two windows, of a token from which on they agree."""
    first = bisect_left(b.starts, around - reach - b.low)
    end = bisect_left(b.starts, around + reach - b.low)
    middle = bisect_left(b.starts, around - b.low)
    for there in sorted(range(max(first, 1), end), key=lambda number: abs(number - middle)):
        start = b.starts[there] + b.low - a.low
        here = bisect_left(a.starts, start)
        if b.starts[there - 1] != b.starts[there] and _agree(a, b, here, there):
            return here, there
    return None


def _agree(a: _Window, b: _Window, here: int, there: int) -> bool:
    if here < a.begin + _SAME or there < _SAME:
        return False
    some_a = slice(here - _SAME, here + _SAME)
    some_b = slice(there - _SAME, there + _SAME)
    if list(a.ids[some_a]) != list(b.ids[some_b]) or len(a.ids[some_a]) < 2 * _SAME:
        return False
    shift = b.low - a.low
    return list(a.starts[some_a]) == [start + shift for start in b.starts[some_b]]
