"""Foreign code, run so that nothing it does at import can end the program or spoil its output."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Generic, NoReturn, TypeVar

from llmft.system.rng import isolated_rng

T = TypeVar("T")

HANG_SECONDS = 60.0
"""An import that takes longer is given up: torch, the slowest one, takes some seconds."""
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
    """Return what `act` gives; raise Failed for all that it raises, but let Ctrl-C pass.

    A KeyboardInterrupt that foreign code raises itself, with no signal, is one of its failures.
    """
    # A text wrapper over bytes, because plugins ask sys.stdout for .buffer and .reconfigure().
    # Only stdout is caught: log handlers made at import keep hold of stderr for the whole run.
    sink = io.BytesIO()
    capture = io.TextIOWrapper(sink, encoding="utf-8", errors="replace", write_through=True)
    begun = time.perf_counter()
    pressed: Sequence[int] = ()
    try:
        with (
            _everything_kept(), _descriptor_caught() as raw,
            contextlib.redirect_stdout(capture), _hangs_given_up(), _ctrl_c_noted() as pressed,
        ):  # fmt: skip
            value = act()
    except BaseException as exc:  # sys.exit() and home-made BaseExceptions must not end us either
        if pressed:
            raise
        raise Failed(
            reason_of(exc), missing=_missing(exc), seconds=time.perf_counter() - begun
        ) from exc
    seconds = time.perf_counter() - begun
    said = b"" if sink.closed else sink.getvalue()
    printed = (said + b"".join(raw)).decode("utf-8", "replace").strip()
    return Outcome(value, seconds, printed)


class _GivenUp(BaseException):
    """Raised into code that takes too long, or that would end this process; no `except` fits it."""


@contextlib.contextmanager
def _everything_kept() -> Iterator[None]:
    """Put back what foreign code changes of this process, and refuse what would end it.

    The working folder, signal handlers, standard streams and random state. A changed working folder
    is a fault: relative paths of the recipe would mean other files.
    """
    folder, streams = _here(), (sys.stdin, sys.stdout, sys.stderr)
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    leave = os._exit
    os._exit = _refuse_to_leave  # type: ignore[assignment]
    try:
        with isolated_rng():
            yield
        moved = _here()
    finally:
        os._exit = leave
        sys.stdin, sys.stdout, sys.stderr = streams
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                with contextlib.suppress(ValueError, OSError):  # in a thread none can be set
                    signal.signal(number, handler)
        if folder and _here() != folder:
            os.chdir(folder)
    if moved != folder:
        raise _GivenUp("it changes the working folder")


@contextlib.contextmanager
def _descriptor_caught() -> Iterator[list[bytes]]:
    """Keep what is written past Python, to descriptor 1, out of what the command prints."""
    caught: list[bytes] = []
    try:
        sys.stdout.flush()
        kept = os.dup(1)
    except (OSError, ValueError, AttributeError):  # it is closed
        yield caught
        return
    with TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        try:
            yield caught
        finally:
            os.dup2(kept, 1)
            os.close(kept)
            file.seek(0)
            caught.append(file.read(10_000))


def _here() -> str:
    """Return the working folder, or "" where it has been deleted."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def _refuse_to_leave(code: int = 0) -> NoReturn:
    raise _GivenUp(f"it calls os._exit({code!r})")


@contextlib.contextmanager
def _hangs_given_up() -> Iterator[None]:
    """Raise into the block where it takes longer than any import should."""

    def give_up(number: int, frame: Any) -> NoReturn:
        raise _GivenUp(f"it does not end within {HANG_SECONDS:g} seconds")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, give_up)
    was = signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *was)
        if before is not None:
            signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _ctrl_c_noted() -> Iterator[list[int]]:
    """Yield the list of the SIGINTs that come in the block; each is handled as before it."""
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield pressed
        return

    def note(number: int, frame: Any) -> None:
        pressed.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def entry_object(module: str, attribute: str = "") -> Any:
    """Return the object that an entry point names: a module, or something within it."""
    found = importlib.import_module(module)
    return functools.reduce(getattr, attribute.split("."), found) if attribute else found


def reason_of(exc: BaseException) -> str:
    """Return an exception as one short line, with the file and line that raised it."""
    if isinstance(exc, _GivenUp):
        text = str(exc)
    elif isinstance(exc, SystemExit):
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
