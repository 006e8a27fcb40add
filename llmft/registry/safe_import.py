"""Foreign code, run so that nothing it does at import can end the program or spoil its output."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")

SLOW_SECONDS = 2.0
"""An import that takes longer is remarked on: every command that asks for it waits."""


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """What a guarded call gave, how long it took, and what it printed."""

    value: T
    seconds: float
    printed: str


class Failed(Exception):
    """Says in one line why foreign code could not be run; `missing`: the module that it lacks."""

    def __init__(self, reason: str, *, missing: str = "", seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.missing = missing
        self.seconds = seconds


def guarded(act: Callable[[], T]) -> Outcome[T]:
    """Return what `act` gives; raise Failed for all that it raises, but let Ctrl-C pass."""
    # A text wrapper over bytes, because plugins ask sys.stdout for .buffer and .reconfigure().
    # Only stdout is caught: log handlers made at import keep hold of stderr for the whole run.
    sink = io.BytesIO()
    capture = io.TextIOWrapper(sink, encoding="utf-8", errors="replace", write_through=True)
    begun = time.perf_counter()
    try:
        with contextlib.redirect_stdout(capture):
            value = act()
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # sys.exit() and home-made BaseExceptions must not end us either
        raise Failed(
            reason_of(exc), missing=_missing(exc), seconds=time.perf_counter() - begun
        ) from exc
    seconds = time.perf_counter() - begun
    printed = "" if sink.closed else sink.getvalue().decode("utf-8", "replace").strip()
    return Outcome(value, seconds, printed)


def entry_object(module: str, attribute: str = "") -> Any:
    """Return the object that an entry point names: a module, or something within it."""
    found = importlib.import_module(module)
    return functools.reduce(getattr, attribute.split("."), found) if attribute else found


def reason_of(exc: BaseException) -> str:
    """Return an exception as one short line, with the file and line that raised it."""
    if isinstance(exc, SystemExit):
        text = f"it calls sys.exit({exc.code!r})"
    elif isinstance(exc, ModuleNotFoundError) and exc.name:
        text = f"it needs '{exc.name}', which is not installed"
    else:
        try:
            words = " ".join((exc.msg if isinstance(exc, SyntaxError) else str(exc)).split())
        except Exception:  # an exception whose own __str__ raises
            words = ""
        text = f"{type(exc).__name__}: {words}" if words else type(exc).__name__
    return shortened(text) + _where(exc)


def shortened(text: str, width: int = 200) -> str:
    """Return a text as one line of at most so many characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."


def _where(exc: BaseException) -> str:
    if isinstance(exc, SyntaxError) and exc.filename:
        return f" ({Path(exc.filename).name}:{exc.lineno})"
    frames = [
        frame
        for frame in traceback.extract_tb(exc.__traceback__)
        if frame.filename != __file__ and "importlib" not in frame.filename
    ]
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


def _missing(exc: BaseException) -> str:
    return exc.name.partition(".")[0] if isinstance(exc, ImportError) and exc.name else ""
