"""Text for a terminal: as wide as it is, broken between words."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TextIO

_LEAST = 20


def terminal_width(stream: TextIO) -> int | None:
    """Return the columns of the terminal that a stream writes to; None where it is none.

    COLUMNS counts before what the terminal says.
    """
    if not stream.isatty():
        return None
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and int(told):
        return max(int(told), _LEAST)
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # a stream without a file
        columns = 80
    return max(columns or 80, _LEAST)


def wrapped(text: str | Sequence[str], width: int | None, indent: int = 2) -> list[str]:
    """Return a text as lines of at most `width` columns, broken between words only.

    text: where it is a sequence, its parts are set apart by two spaces, and a part that fits on a
    line is not broken. width: None leaves the text as it is. indent: of the lines after the first,
    beside that of the text itself. A word that is too long for a line, such as a path, has one for
    itself.
    """
    parts = [text] if isinstance(text, str) else list(text)
    whole = "  ".join(parts)
    if width is None or len(whole) <= width:
        return [whole]
    first = parts[0] if parts else ""
    own = " " * (len(first) - len(first.lstrip(" ")))
    lines, line, margin = [], own, own + " " * indent
    for number, part in enumerate(parts):
        gap = "  " if number else ""
        if len(parts) > 1 and line.strip() and len(line + gap + part) > width:
            lines.append(line)
            line, gap = margin, ""
        for count, word in enumerate(part.split()):
            gap = " " if count else gap
            if line.strip() and len(line + gap + word) > width:
                lines.append(line)
                line, gap = margin, ""
            if not line.strip():
                line, gap = line if len(line + word) <= width else "", ""
            line += gap + word
    return [*lines, line.rstrip()]
