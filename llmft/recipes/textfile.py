"""A recipe's text: read safely, whatever the path turns out to be."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from llmft.api.errors import LlmftError, Place, RecipeError
from llmft.recipes.tree import visible
from llmft.system.nearest import nearest

MAX_BYTES = 1 << 20
MAX_LINES = 20_000
MAX_LINE = 16_384  # ruamel scans tags in quadratic time; a line of this length costs milliseconds

# The line breaks that the parser counts, so that our lines and its lines are the same.
_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_UNPRINTABLE = re.compile(
    "[^\x09\x0a\x0d\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def lines_of(text: str) -> list[str]:
    """Return the lines of a text, without their breaks."""
    return _BREAK.split(text)


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a recipe file, without a byte order mark; RecipeError if it has none."""
    name = os.fspath(path)
    return decoded(_read(name), visible(name))


def decoded(data: bytes, file: str) -> str:
    """Return bytes as the text of a recipe; RecipeError names the first byte that is none."""
    if len(data) > MAX_BYTES:
        what = f"larger than {MAX_BYTES >> 20} MiB, the most for a recipe"
        raise _fault("E002", file, what, "check the path: is this a data file?")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _fault("E003", file, "the file is UTF-16", "save it as UTF-8")
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        what = f"byte {error.start} (0x{data[error.start]:02x}) is not UTF-8"
        place = Place(file, line, column)
        raise RecipeError("E003", what, fix="save the file as UTF-8", place=place) from error
    lines = lines_of(text)
    if found := _UNPRINTABLE.search(text):
        ahead = lines_of(text[: found.start()])
        line, column = len(ahead), len(ahead[-1]) + 1
        name = "a NUL" if found.group() == "\0" else "a control character"
        what = f"{name} (U+{ord(found.group()):04X}) is in the file"
        place = Place(file, line, column, lines[line - 1])
        raise RecipeError("E003", what, fix="delete it", place=place)
    if len(lines) > MAX_LINES:
        raise _fault("E002", file, f"more than {MAX_LINES:,} lines", "check the path")
    for number, line_text in enumerate(lines, start=1):
        if len(line_text) > MAX_LINE:
            what = f"line {number} has more than {MAX_LINE:,} characters"
            raise RecipeError("E002", what, fix="break it", place=Place(file, number, 1))
    return text


def _read(name: str) -> bytes:
    # Opened without blocking, and only then asked what it is: a pipe would hang, and a path could
    # change between a look and an open.
    try:
        descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError as error:
        near = nearest(Path(name).name, _neighbours(Path(name).parent))
        fix = f"did you mean {', '.join(near)}?" if near else "`llmft list-recipes` shows some"
        raise _fault("E001", visible(name), "there is no such file", fix) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _fault("E001", visible(name)[:300], f"cannot be read: {reason}") from error
    try:
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if kind != stat.S_IFREG:
            what = f"this is {_KINDS.get(kind, 'no file')}, and a recipe is a plain file"
            raise _fault("E001", visible(name), what, "name the .yaml file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _fault("E001", visible(name), f"cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _neighbours(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry, _ in zip(entries, range(1000), strict=False)]
    except OSError:
        return []
    return [name for name in names if name.endswith((".yaml", ".yml"))]


def _fault(code: str, file: str, what: str, fix: str = "") -> LlmftError:
    return RecipeError(code, what, fix=fix, place=Place(file))
