"""A recipe as plain data that remembers where everything stood, and what was wrong there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from llmft.api.errors import Fault, Place

KeyPath = tuple[str | int, ...]

# Shown as their code point: they are invisible, or would rearrange or erase what a terminal shows.
UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xa0\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)


def visible(text: str) -> str:
    """Return the text on one line with every unseen character written as <U+200B>."""
    return UNSEEN.sub(lambda match: f"<U+{ord(match.group()):04X}>", text)


def dotted(path: KeyPath) -> str:
    """Return a path as people write it: stages[0].train.learning_rate."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{_shorten(visible(part), 80)}" if text else _shorten(visible(part), 80)
    return text


def shown(value: Any) -> str:
    """Return a value as a message quotes it: short, on one line, in the words of a recipe."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"'{_shorten(visible(value), 60)}'"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, int | float):
        return _number(value)
    return "a block"


def _number(value: float) -> str:
    # Python refuses to print whole numbers of thousands of digits.
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a whole number of about {int(value.bit_length() * 0.30103)} digits"
    return repr(value)


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


@dataclass(slots=True)
class Tree:
    """Plain data, a place for every key and value, and the faults found so far.

    keys, values: the place of each path's key and of its value. raw: numbers as they were written.
    broken: paths that already have a fault; a second one about the same thing is not reported.
    """

    file: str
    text: str = ""
    data: Any = None
    keys: dict[KeyPath, Place] = field(default_factory=dict)
    values: dict[KeyPath, Place] = field(default_factory=dict)
    raw: dict[KeyPath, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    broken: set[KeyPath] = field(default_factory=set)

    def place(self, path: KeyPath, *, of_key: bool = False) -> Place:
        """Return where a key or a value stands, or else the nearest block around it."""
        first, second = (self.keys, self.values) if of_key else (self.values, self.keys)
        for places in (first, second):
            if path in places:
                return places[path]
        for end in range(len(path) - 1, -1, -1):
            for places in (self.keys, self.values):
                if path[:end] in places:
                    return places[path[:end]]
        return Place(self.file)

    def is_broken(self, path: KeyPath) -> bool:
        """Return whether the path or a block around it has a fault already."""
        return any(path[:end] in self.broken for end in range(len(path) + 1))

    def touches_broken(self, paths: Iterable[KeyPath]) -> bool:
        """Return whether one of the paths has a fault on it, around it or inside it."""
        return any(
            self.is_broken(path) or any(other[: len(path)] == path for other in self.broken)
            for path in paths
        )

    def report(
        self, code: str, path: KeyPath, what: str, fix: str = "", *, of_key: bool = False
    ) -> None:
        """Note a fault at a path, unless one was already noted there or around it."""
        if self.is_broken(path):
            return
        self.broken.add(path)
        self.faults.append(Fault(code, what, fix, dotted(path), self.place(path, of_key=of_key)))

    def report_together(self, code: str, paths: list[KeyPath], what: str, fix: str) -> None:
        """Note a fault that lies between several keys, naming the line of each."""
        lines = sorted({place.line for path in paths if (place := self.place(path)).line})
        if len(lines) > 1:
            what += f" (lines {', '.join(map(str, lines[:-1]))} and {lines[-1]})"
        self.report(code, paths[0], what, fix)

    def adopt(self, faults: Iterable[Fault], path: KeyPath) -> None:
        """Note faults that somebody else found, at a path of this tree."""
        if not self.is_broken(path):
            self.broken.add(path)
            place = self.place(path)
            self.faults.extend(replace(f, path=dotted(path), place=place) for f in faults)

    def written(self, path: KeyPath, value: Any) -> str:
        """Return a value as the user wrote it, for a message."""
        return self.raw.get(path) or shown(value)

    def walk(self, visit: Callable[[KeyPath, Any], None]) -> None:
        """Call `visit` with every path and value, outer ones first."""
        waiting: list[tuple[KeyPath, Any]] = [((), self.data)]
        while waiting:
            path, value = waiting.pop()
            visit(path, value)
            if isinstance(value, dict):
                waiting.extend(((*path, key), item) for key, item in value.items())
            elif isinstance(value, list):
                waiting.extend(((*path, index), item) for index, item in enumerate(value))

    def sorted_faults(self) -> list[Fault]:
        """Return the faults in the order of their places, those of flags last."""

        def position(fault: Fault) -> tuple[bool, int, int]:
            place = fault.place or Place("")
            return place.line == 0, place.line, place.column

        return sorted(self.faults, key=position)
