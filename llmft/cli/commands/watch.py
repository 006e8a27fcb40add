"""`llmft watch RUN`."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmft.api.errors import Interrupted
from llmft.api.shown_text import on_one_line
from llmft.cli.commands.output import printable, table
from llmft.recipes.secret import masked
from llmft.reporting.report import duration
from llmft.reporting.watching import (
    Watched,
    finished_stages,
    look,
    scores_told,
    shown_curves,
    sparkline,
    told,
)
from llmft.system.signals import leave_on_signal
from llmft.system.terminal import terminal_width

_WIDTH, _WIDEST = 40, 80
_NOTES, _LONGEST = 3, 200


def watch(run: str, *, once: bool, interval: float, quiet: bool) -> Watched:
    """Show how a run goes until it ends, and return how it then is; Ctrl-C ends watching alone.

    once: look once. interval: seconds between two looks. quiet: show nothing.
    """
    folder = Path(run)
    seen = look(folder)
    if once or not seen.runs:
        return seen
    try:
        with leave_on_signal(), _view(quiet=quiet) as show:
            took = 0.0
            while seen.runs:
                show(seen)
                # A large file takes its time: at most a fifth of it is spent on reading.
                time.sleep(max(interval, 4 * took))
                began = time.monotonic()
                seen = look(folder)
                took = time.monotonic() - began
    except Interrupted as stop:
        if stop.exit_code != 128 + signal.SIGINT:
            raise
    return seen


@contextmanager
def _view(*, quiet: bool) -> Iterator[Callable[[Watched], None]]:
    """Yield what shows a run: over its last view in a terminal, else where a phase begins."""
    if quiet:
        yield lambda _: None
        return
    if not sys.stdout.isatty():
        yield _by_phase()
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(
        console=Console(highlight=False), auto_refresh=False, transient=True,
        vertical_overflow="ellipsis", redirect_stdout=False, redirect_stderr=False,
    ) as live:  # fmt: skip

        def show(seen: Watched) -> None:
            text = Text.from_ansi(printable(as_text(seen)), no_wrap=True, overflow="ellipsis")
            live.update(text, refresh=True)

        yield show


def _by_phase() -> Callable[[Watched], None]:
    """Return what prints a view where a phase begins: for a pipe, or a log."""
    last: list[Any] = [None]

    def show(seen: Watched) -> None:
        phase = seen.phase and (seen.phase.stage, seen.phase.name)
        if phase != last[0]:
            last[0] = phase
            print(printable(as_text(seen)) + "\n", flush=True)

    return show


def as_text(seen: Watched) -> str:
    """Return a run at a moment as text."""
    facts = seen.facts
    took = f", {duration(facts.seconds)}" if facts.seconds is not None and not seen.runs else ""
    took = f", since {facts.started}" if seen.runs and facts.started else took
    parts = [f"{on_one_line(facts.name)}: {facts.state}{took}  {facts.folder}"]
    done = finished_stages(facts)
    for stage in done:
        scores = scores_told(stage)
        line = f"[{stage.name}] {stage.work}: done" + (f"; {scores}" if scores else "")
        parts.append(on_one_line(line))
    if seen.phase is not None:
        phase = seen.phase
        count = f" {phase.done:,}/{phase.total:,}" if phase.total > 1 else ""
        left = f", {duration(phase.left)} left" if phase.left is not None else ""
        parts.append(on_one_line(f"[{phase.stage}] {phase.name}")[:_LONGEST] + f"{count}{left}")
    for stage in seen.stages:
        parts += ["", *_curves(stage, named=len(seen.stages) > 1)]
    notes = [on_one_line(masked(str(note))) for note in facts.timeline.get("notes", [])][-_NOTES:]
    return "\n".join([*parts, *(["", *(f"note: {note}" for note in notes)] if notes else [])])


def _curves(stage: Any, *, named: bool) -> list[str]:
    width = terminal_width(sys.stdout)
    room = _WIDTH if width is None else max(min(width - 50, _WIDEST), 8)
    plain = not _shows_bars()
    rows = [
        (name, sparkline(points, room, plain=plain), told(points), f"step {points[-1][0]:g}")
        for name, points in shown_curves(stage)
    ]
    title = stage.name if named else "metric"
    return table((title, "over the steps", "first -> last", ""), rows).split("\n")


def _shows_bars() -> bool:
    try:
        "▁█".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def as_json(seen: Watched) -> dict[str, Any]:
    """Return a run at a moment as plain data."""
    phase = seen.phase
    return {
        "run": str(seen.facts.folder),
        "name": seen.facts.name,
        "state": seen.facts.state,
        "seconds": seen.facts.seconds,
        "phase": None
        if phase is None
        else {
            "stage": phase.stage, "name": phase.name, "done": phase.done, "total": phase.total,
            "seconds_left": phase.left, "metrics": dict(phase.metrics),
        },
        "stages": {
            stage.name: {
                "finished": stage.result is not None,
                "after": dict((stage.result or {}).get("after") or {}),
                "last": {name: points[-1][1] for name, points in stage.curves.items()},
            }
            for stage in seen.facts.stages
        },
    }  # fmt: skip
