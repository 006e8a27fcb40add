"""SIGINT and SIGTERM: a run leaves at once, but for a step of training, which is finished first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from llmft.errors import Interrupted

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class _Leave(BaseException):
    """Unwinds the run; no `except Exception`, such as the one around trackers, holds it up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def leave_on_signal() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into Interrupted, raised at once from wherever the block is."""

    def leave(number: int, frame: Any) -> NoReturn:
        raise _Leave(number)

    try:
        with _handled_by(leave):
            yield
    except _Leave as request:
        name = signal.Signals(request.number).name
        raise Interrupted(request.number, f"stopped by {name} between two steps") from None


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
    """Yield a flag that SIGINT or SIGTERM sets; a second signal leaves at once."""
    stop = Stop()

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
def _handled_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in _NUMBERS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
