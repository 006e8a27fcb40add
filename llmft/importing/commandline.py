"""A command line such as `python dora.py --flag value`, found in a text and cut into its flags."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from llmft.errors import Fault, Place, RecipeError
from llmft.reading.tree import visible

_START = re.compile(r"^[ \t]*(?:\$ +)?(?:[\w./-]+ +)*(?P<script>[\w./-]+\.py)(?=[ \t\r\n\\]|$)")
_HEADING = re.compile(r"^[ \t]*#+[ \t]*(.*?)[ \t#]*$")
_TOKEN = re.compile(r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|\\[^\s]|[^\s"'\\])+""", re.DOTALL)
_CONTINUED = re.compile(r"\\[ \t]*$")
_NUMBER = re.compile(r"-\.?[0-9]")


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of a command: its name without dashes, its values as written, and its place."""

    name: str
    values: tuple[str, ...]
    place: Place

    def __str__(self) -> str:
        return " ".join((f"--{self.name}", *self.values))


@dataclass(frozen=True, slots=True)
class Command:
    """A command line: the script it starts, its flags, and the headings above it."""

    script: str
    flags: tuple[Flag, ...]
    headings: tuple[str, ...]
    place: Place


def find_commands(text: str, file: str) -> list[Command]:
    """Return the command lines in a text: alone, or in a page with headings and code fences.

    A command goes on in the next line after a backslash, and where that line begins with '--'.
    Raises RecipeError with every flag that cannot be read.
    """
    lines = text.splitlines()
    commands: list[Command] = []
    headings: list[str] = []
    number = 0
    while number < len(lines):
        line = lines[number]
        if heading := _HEADING.match(line):
            headings.append(heading[1])
        if heading or not (start := _START.match(line)):
            number += 1
            continue
        end = _end(lines, number)
        flags = _flags(lines, number, start.end(), end, file)
        place = Place(file, number + 1, start.start("script") + 1, line, len(start["script"]))
        commands.append(Command(start["script"], flags, tuple(headings), place))
        number = end
    return commands


def _end(lines: list[str], first: int) -> int:
    """Return the number of the line after a command's last."""
    number = first + 1
    while number < len(lines):
        going_on = _CONTINUED.search(lines[number - 1]) and not lines[number].startswith("```")
        if not going_on and not lines[number].lstrip().startswith("--"):
            break
        number += 1
    return number


def _flags(lines: list[str], first: int, column: int, end: int, file: str) -> tuple[Flag, ...]:
    found: list[tuple[str, list[str], Place]] = []
    faults: list[Fault] = []
    for number in range(first, end):
        line = lines[number]
        code = _CONTINUED.sub("", line)
        at = column if number == first else 0
        for match in _TOKEN.finditer(code, at):
            token = match.group()
            place = Place(file, number + 1, match.start() + 1, line, len(token))
            if token.startswith("-") and not _NUMBER.match(token):
                name, equals, value = token.lstrip("-").partition("=")
                found.append((name.replace("-", "_"), _unquoted(value) if equals else [], place))
            elif found:
                found[-1][1].extend(_unquoted(token))
            else:
                what = f"'{visible(token)[:60]}' belongs to no flag"
                faults.append(Fault("E091", what, "write --name value", place=place))
        rest = _TOKEN.sub("", code[at:])
        if mark := next((mark for mark in "\"'" if mark in rest), None):
            place = Place(file, number + 1, line.rfind(mark) + 1, line)
            faults.append(Fault("E091", "a quote is not closed in this line", "", place=place))
    names = [name for name, _, _ in found]
    for index, (name, _, place) in enumerate(found):
        if name in names[:index]:
            what = f"--{visible(name)[:60]} is given twice"
            faults.append(Fault("E091", what, "keep one of the two", place=place))
    if faults:
        raise RecipeError.of(faults)
    return tuple(Flag(name, tuple(values), place) for name, values, place in found)


def _unquoted(token: str) -> list[str]:
    return shlex.split(token) if token else [""]
