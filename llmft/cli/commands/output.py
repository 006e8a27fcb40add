"""What commands print: text and tables that fit a terminal, or unwrapped where nobody looks on."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from itertools import zip_longest

from llmft.api.shown_text import escaped, on_one_line
from llmft.system.terminal import terminal_width, wrapped

Row = Sequence[str]
_GAP = 2
# Stands for the escape character in what we set in bold; nobody else can know it.
_OUR_ESCAPE = f"\ue01b{secrets.token_hex(16)}"
# SGR numbers: 16-colour ones, which every theme sets so that they can be read.
LEARNT, SPECIAL = "1;32", "35"
ROLES = {"system": "33", "user": "36", "assistant": "34", "tool": "31"}
_BOLD, _OFF = f"{_OUR_ESCAPE}[1m", f"{_OUR_ESCAPE}[0m"


def printable(text: str) -> str:
    """Return what a command answers as it may be printed: only our own tables have bold type."""
    return escaped(text).replace(_OUR_ESCAPE, "\x1b")


def prose(text: str) -> str:
    """Return a text whose lines are wrapped to the terminal; as it is when piped."""
    width = terminal_width(sys.stdout)
    lines = (wrapped(line, width, indent=0) if line else [""] for line in text.split("\n"))
    return "\n".join(part for parts in lines for part in parts)


def table(header: Row, rows: Sequence[Row]) -> str:
    """Return a table as text: fitted to the terminal, or one unwrapped line a row when piped.

    Cells are broken between words only. Where that leaves no room for a table, each row becomes a
    few lines: its first cell, and below it the others with their names. Print it by `printable`.
    """
    header = [on_one_line(cell) for cell in header]
    rows = [[on_one_line(cell) for cell in row] for row in rows]
    width = terminal_width(sys.stdout)
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    room = (width or 0) - _GAP * (len(header) - 1)
    if width is None or sum(widths) <= room:
        return "\n".join([_bold(_line(header, widths)), *(_line(row, widths) for row in rows)])
    fitted = _fitted([header, *rows], widths, room)
    if fitted is None:
        return "\n\n".join(_record(header, row, width) for row in rows)
    head, *body = (_cells(row, fitted) for row in [header, *rows])
    return "\n".join([*map(_bold, head), *(line for lines in body for line in lines)])


def _fitted(rows: Sequence[Row], widths: Sequence[int], room: int) -> list[int] | None:
    """Return widths that fit, none below a column's longest word; None where there are none."""
    # The first column is what a reader looks up, or copies: it stays whole.
    least = [widths[0]] + [
        max((len(word) for row in rows for word in row[i].split()), default=0)
        for i in range(1, len(widths))
    ]
    spare = room - sum(least)
    if spare < 0:
        return None
    wanted = [whole - word for whole, word in zip(widths, least, strict=True)]
    total = sum(wanted)
    return [word + spare * more // total for word, more in zip(least, wanted, strict=True)]


def _cells(row: Row, widths: Sequence[int]) -> list[str]:
    """Return the lines of a row whose cells are wrapped."""
    cells = [
        wrapped(cell, width, indent=0) if cell else []
        for cell, width in zip(row, widths, strict=True)
    ]
    return [_line(parts, widths) for parts in zip_longest(*cells, fillvalue="")]


def _record(header: Row, row: Row, width: int) -> str:
    named = zip(header[1:], row[1:], strict=True)
    parts = [f"{name}: {cell}" if name else cell for name, cell in named if cell]
    parts[:1] = [f"  {part}" for part in parts[:1]]
    return "\n".join([_bold(row[0]), *wrapped(parts, width, indent=0)])


def _line(row: Row, widths: Sequence[int]) -> str:
    cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    return (" " * _GAP).join(cells).rstrip()


def has_colors() -> bool:
    """Return whether standard output is a terminal that colours are wanted on."""
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return not plain and sys.stdout.isatty()


def colored(text: str, color: str) -> str:
    """Return a text in a colour, an SGR number or several, line by line; plain where none are."""
    text = escaped(text)
    if not color or not has_colors():
        return text
    start = f"{_OUR_ESCAPE}[{color}m"
    return "\n".join(f"{start}{line}{_OFF}" if line else "" for line in text.split("\n"))


def _bold(text: str) -> str:
    return f"{_BOLD}{text}{_OFF}" if has_colors() else text
