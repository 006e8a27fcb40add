"""Faults as text for a terminal: the one line, the offending source line, and a caret under it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from llmft.api.errors import Fault, Place
from llmft.recipes.tree import UNSEEN, visible
from llmft.system.terminal import wrapped

_RED, _DIM, _OFF = "\x1b[1;31m", "\x1b[2m", "\x1b[0m"
_PLAIN = str.maketrans(
    {"—": "-", "–": "-", "…": "...", "→": "->", "×": "x", "·": "-",
     "‘": "'", "’": "'", "“": '"', "”": '"'}
)  # fmt: skip


_COMMAND = re.compile(r"(.*?)((?:llmft|hf|pip|wandb) .+)", re.DOTALL)


def render_faults(
    faults: Sequence[Fault],
    color: bool = False,
    width: int = 100,
    encoding: str = "utf-8",
    wrap: bool = False,
) -> str:
    """Return the faults as text, each with its source line and a caret, and their count.

    width: columns of the terminal; source lines are cut to it. wrap: break messages between words
    to fit it; else each is one line. encoding: that of the stream; what it cannot say is replaced,
    so that writing the text never fails.
    """
    parts = [_rendered(fault, color, max(width, 20), encoding, wrap) for fault in faults]
    if len(faults) > 1:
        parts.append(f"{len(faults)} faults")
    codes = sorted({fault.code for fault in faults})
    if codes:
        shown = " ".join(codes[:1])
        parts.append(f"`llmft explain {shown}` says what the code means")
    text = "\n\n".join(parts[: len(faults)]) + "\n\n" + "; ".join(parts[len(faults) :]) + "\n"
    return encodable(text, encoding) if faults else ""


def encodable(text: str, encoding: str) -> str:
    """Return the text with what the encoding cannot say replaced by ASCII."""
    try:
        text.encode(encoding)
    except LookupError:
        encoding = "ascii"
    except UnicodeEncodeError:
        pass
    else:
        return text
    return text.translate(_PLAIN).encode(encoding, "backslashreplace").decode(encoding)


def _rendered(fault: Fault, color: bool, width: int, encoding: str, wrap: bool) -> str:
    line = visible(fault.line())
    if wrap:
        line = "\n".join(_wrapped(line, width))
    head = f"error[{fault.code}]"
    if color and line.startswith(head):
        line = f"{_RED}{head}{_OFF}{line[len(head) :]}"
    place = fault.place
    if place is None or not place.line or not place.source.strip():
        return line
    number, source, caret = _excerpt(place, width, encoding)
    if color:
        number, caret = f"{_DIM}{number}{_OFF}", f"{_RED}{caret}{_OFF}"
    blank = " " * (len(str(place.line)) + 2)
    return f"{line}\n{number}{source}\n{blank}| {caret}"


def _wrapped(line: str, width: int) -> list[str]:
    """Return a fault's line as several; a command is left whole, so that it can be copied."""
    message, dash, fix = line.partition(" — fix: ")
    if len(line) <= width or not dash:
        return wrapped(line, width)
    said = f"  fix: {fix}"
    command = _COMMAND.fullmatch(said) if len(said) > width else None
    if command is None:
        return [*wrapped(message, width), *wrapped(said, width, indent=3)]
    return [*wrapped(message, width), *wrapped(command[1].rstrip(), width, indent=3), command[2]]


def _excerpt(place: Place, width: int, encoding: str) -> tuple[str, str, str]:
    """Return the line's number, as much of the line as fits around the place, and the caret."""
    number = f" {place.line} | "
    room = max(width - len(number), 10)
    at = min(max(place.column, 1), len(place.source) + 1) - 1
    # Every character stays one character, so that the caret's column stays right.
    source = UNSEEN.sub("?", place.source.replace("\t", " ")).translate(_ONE_TO_ONE)
    source = source.encode(encoding if _known(encoding) else "ascii", "replace").decode(
        encoding if _known(encoding) else "ascii"
    )
    start = 0
    if len(source) > room:
        start = max(0, min(at - room // 3, len(source) - room))
    cut = source[start : start + room].rstrip()
    if start:
        cut = "..." + cut[3:]
    if start + room < len(source):
        cut = cut[:-3] + "..."
    before, under = source[start:at], source[at : at + max(place.width, 1)]
    span = max(1, min(_cells(under) or 1, room - _cells(before)))
    return number, cut, " " * _cells(before) + "^" + "~" * (span - 1)


_ONE_TO_ONE = str.maketrans({"—": "-", "–": "-", "\xa0": " "})


def _known(encoding: str) -> bool:
    try:
        "".encode(encoding)
    except LookupError:
        return False
    return True


def _cells(text: str) -> int:
    """Return how many columns a terminal gives a text."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
