"""The tokens at which generation stops, where they end a text, and what text may not spell."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Stops:
    """The tokens at which generation stops, as text, and control tokens that text must not spell.

    ends: tokens that may follow the stop, such as end-of-text. control: every special token.
    ids: the stop tokens' ids. appended: the end-of-text that is put after an answer where the
    template ends it with none of the stops; '': such an answer is refused. named: the end-of-text,
    and the stops that the recipe names. ends_rows: whether end-of-text is put at the end of every
    row, so that its last answer is ended in any case.
    """

    stops: tuple[str, ...]
    ends: tuple[str, ...] = ()
    control: tuple[str, ...] = ()
    ids: frozenset[int] = frozenset()
    appended: str = ""
    named: tuple[str, ...] = ()
    ends_rows: bool = False

    def spelled(self, text: str) -> str:
        """Return the first control token that a text spells, or ''."""
        pattern = any_of((*self.stops, *self.ends, *self.control))
        found = pattern.search(text) if pattern else None
        return found.group() if found else ""

    def end_of(self, text: str, from_: int) -> int | None:
        """Return where the first stop token ends that is followed by blanks and ends only."""
        pattern = _closing(self.stops, self.ends)
        found = pattern.search(text, from_) if pattern else None
        return found.end(1) if found else None

    def followed(self, text: str, from_: int) -> tuple[str, str] | None:
        """Return what is wrong where more than blanks stands after a stop, and what mends it."""
        pattern = any_of(self.stops)
        found = list(pattern.finditer(text, from_)) if pattern else []
        if not found:
            return None
        more = text[found[-1].end() :].strip()
        return (
            f"after {found[-1].group()!r}, at which generation stops, the chat template writes"
            f" {more[:_SHOWN]!r}, although no answer is asked for",
            "have the template write a generation prompt only if add_generation_prompt is set, or"
            " give another one as model.chat_template",
        )


@lru_cache(maxsize=64)
def any_of(words: tuple[str, ...]) -> re.Pattern[str] | None:
    """Return a pattern of any of the words, the longest first; None where there is none."""
    known = sorted({word for word in words if word}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, known))) if known else None


@lru_cache(maxsize=64)
def _closing(stops: tuple[str, ...], ends: tuple[str, ...]) -> re.Pattern[str] | None:
    stop, end = any_of(stops), any_of((*stops, *ends))
    if stop is None or end is None:
        return None
    return re.compile(rf"({stop.pattern})(?:\s|{end.pattern})*\Z")
