"""What commands print: tables that fit a terminal, or plain columns where nobody looks on."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence

from llmft.api.shown_text import escaped

Row = Sequence[str]
# Stands for the escape character in tables that we drew; nobody else can know it.
_OUR_ESCAPE = f"\ue01b{secrets.token_hex(16)}"


def table(header: Row, rows: Sequence[Row]) -> str:
    """Return a table as text: wrapped to the terminal, or one unwrapped line a row when piped."""
    header = [escaped(cell) for cell in header]
    rows = [[escaped(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        return "\n".join(_columns([header, *rows]))
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for column, name in enumerate(header):
        # The first column is what a reader looks up, or copies: it stays whole.
        drawn.add_column(Text(name), overflow="fold", no_wrap=column == 0)
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    console = Console(file=sys.stdout, highlight=False)
    with console.capture() as captured:
        console.print(drawn)
    return captured.get().rstrip("\n").replace("\x1b", _OUR_ESCAPE)


def printable(text: str) -> str:
    """Return what a command answers as it may be printed: only our own tables have colours."""
    return escaped(text).replace(_OUR_ESCAPE, "\x1b")


def _columns(rows: Sequence[Row]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
