"""SIGINT, SIGTERM, USR1 and USR2: a run leaves at once; a step of training is finished first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

from llmft.api.errors import Interrupted, LlmftError

# Slurm's --signal and submitit send USR1 or USR2 some time before they end a job.
_NUMBERS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)  # Windows has no USR
)


class _Leave(BaseException):
    """Unwinds the run; no `except Exception`, such as the one around trackers, holds it up."""


# A library that is being imported may swallow what a signal raised, and go on half imported.
_asked: list[int] = []


@contextmanager
def noted_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGINT, as Python does, and remember that it came.

    An error that follows it comes of it, so Interrupted is raised in its place; where none has
    followed, `leave_on_signal` leaves.
    """

    def interrupt(number: int, frame: Any) -> NoReturn:
        _asked.append(number)
        raise KeyboardInterrupt

    ignored = signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    handled = nullcontext() if ignored else _handled_by(interrupt, (signal.SIGINT,))
    with _told_as("interrupted"), handled:
        yield


@contextmanager
def leave_on_signal() -> Iterator[None]:
    """Turn such a signal into Interrupted, raised at once from wherever the block is."""

    def leave(number: int, frame: Any) -> NoReturn:
        _asked.append(number)
        raise _Leave

    with _told_as("stopped by {} between two steps"), _handled_by(leave):
        if _asked:
            raise _Leave
        yield


@contextmanager
def _told_as(what: str) -> Iterator[None]:
    """Raise Interrupted where a signal was noted, and the block ends by what came of it."""
    try:
        yield
    except LlmftError:
        raise
    except (_Leave, Exception):
        if not _asked:
            raise
        number = _asked[0]
        raise Interrupted(number, what.format(signal.Signals(number).name)) from None
    finally:
        _asked.clear()


@dataclass
class Stop:
    """Which signal asked to stop, or 0; called, it says whether one did."""

    signal: int = 0
    saving: bool = False

    def __call__(self) -> bool:
        return bool(self.signal)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let even a second signal wait while the block saves."""
        self.saving = True
        try:
            yield
        finally:
            self.saving = False


@contextmanager
def stop_requests() -> Iterator[Stop]:
    """Yield a flag that such a signal sets; a second signal leaves at once."""
    stop = Stop(_asked[0] if _asked else 0)

    def note(number: int, frame: Any) -> None:
        if stop.signal and not stop.saving:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stop.signal = number

    with _handled_by(note):
        yield stop
    if stop.signal:  # it came after the last step had asked for it
        signal.raise_signal(stop.signal)


@contextmanager
def _handled_by(
    handler: Callable[[int, Any], None], numbers: Sequence[signal.Signals] = _NUMBERS
) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
