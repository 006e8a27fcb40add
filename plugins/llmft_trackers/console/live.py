"""The line that moves while a phase is under way."""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from llmft.toolkit import escaped, terminal_width

if TYPE_CHECKING:
    from rich.live import Live

BAR = 12
MOST, BEFORE_THE_BAR = 5, 3
"""Metrics on the line at most, and those that are shown rather than the bar."""


class LiveLine:
    """One line of a terminal, drawn anew in its place. No thread: it moves when it is told to."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live: Live | None = None

    def draw(self, head: str, share: float, metrics: Sequence[str], left: str) -> None:
        """Show how far a phase has come. share: of the whole, in [0, 1]."""
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        width = (terminal_width(self._out) or 80) - 1
        told = composed(escaped(head), share, [escaped(metric) for metric in metrics], left, width)
        text = Text(told, no_wrap=True, overflow="ellipsis")
        if self._live is None:
            console = Console(file=self._out, markup=False, highlight=False, width=width)
            self._live = Live(
                text, console=console, auto_refresh=False, transient=True,
                redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip
            self._live.start()
            # A run that dies must not leave the cursor hidden.
            atexit.register(self.clear)
        self._live.update(text, refresh=True)

    def clear(self) -> None:
        """Take the line away."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            atexit.unregister(self.clear)


def composed(head: str, share: float, metrics: Sequence[str], left: str, width: int) -> str:
    """Return what fits on a line: the phase, the time left, the first metrics, and a bar."""
    room = width - len(head)
    ending = f"  {left}" if left and len(left) + 2 <= room else ""
    room -= len(ending)
    bar = ""
    kept: list[str] = []
    for number, metric in enumerate([*metrics[:MOST], ""]):
        if number == min(BEFORE_THE_BAR, len(metrics)) and room >= BAR + 2:
            filled = round(min(max(share, 0.0), 1.0) * BAR)
            bar = f"  {'━' * filled}{'─' * (BAR - filled)}"
            room -= len(bar)
        if not metric or len(metric) + 2 > room:
            break
        kept.append(metric)
        room -= len(metric) + 2
    return head + bar + "".join(f"  {metric}" for metric in kept) + ending
