"""A limit on how long a block of somebody else's code may take."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


class TimeUp(Exception):
    """The block has taken longer than it may."""


class _Over(BaseException):
    """Unwinds the block; no `except Exception` inside it holds it up."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise TimeUp where the block takes longer than so many seconds; None: no limit.

    In the main thread, Python code (a search by a regular expression too) is interrupted. In
    another thread, and on a platform without such a signal, TimeUp comes after the block. A limit
    around another one goes on meanwhile.
    """
    started = time.monotonic()
    stoppable = threading.current_thread() is threading.main_thread()
    if seconds is None or not stoppable or not hasattr(signal, "setitimer"):
        yield
        if seconds is not None and time.monotonic() - started > seconds:
            raise TimeUp
        return

    def over(number: int, frame: Any) -> NoReturn:
        raise _Over

    before = signal.signal(signal.SIGALRM, over)
    left, again = signal.setitimer(signal.ITIMER_REAL, seconds)
    if 0 < left < seconds:
        signal.setitimer(signal.ITIMER_REAL, left)
    try:
        yield
    except _Over:
        raise TimeUp from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if before is not None:
            signal.signal(signal.SIGALRM, before)
        if left:  # at once, if it was over meanwhile
            rest = max(left - (time.monotonic() - started), 1e-6)
            signal.setitimer(signal.ITIMER_REAL, rest, again)
