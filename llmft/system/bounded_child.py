"""Work on a stranger's data in one long-lived process, with a bound on time and on memory.

A program that came with a model (a template, a regular expression) may count for ever or fill the
memory, and neither Python nor Rust can be stopped from outside. The process is forked, so it has
everything that is loaded already; a question costs some ten microseconds beside its work.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import pickle
import select
import signal
import struct
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

SECONDS, MEGABYTES = 5.0, 1024
_LONGEST = 30.0  # on a clock: where the machine is busy, a process gets little of its seconds
_HEAD = struct.Struct("!cQ")
_LENGTH = struct.Struct("!Q")
_DONE, _RAISED, _HUGE = b"d", b"r", b"h"


class OutOfBounds(Exception):
    """The work took too long or too much memory; the text says which, as the end of a sentence."""


class WorkFailed(Exception):
    """The work raised an exception of the type `kind`; the text is its own."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class BoundedChild:
    """A process that answers questions; one that breaks a bound is ended, and made again if needed.

    work: gives an answer of plain data (texts, numbers, lists) for a question. It runs on a copy of
        what this process had when it was first asked.
    seconds: of the processor, for one question. megabytes: beyond what this process has.
    """

    def __init__(
        self, work: Callable[[Any], Any], seconds: float = SECONDS, megabytes: int = MEGABYTES
    ) -> None:
        self._work, self.seconds, self.megabytes = work, seconds, megabytes
        self._lock = threading.Lock()
        self._ends: _Ends | None = None

    def ask(self, question: Any) -> Any:
        """Return the work's answer; raise OutOfBounds or WorkFailed."""
        if not hasattr(os, "fork"):
            return self._work(question)
        with self._lock:
            ends = self._ends
            if ends is None or ends.owner != os.getpid():  # not after a fork of ours
                ends = self._ends = _Ends(self._work, self.seconds, self.megabytes)
                weakref.finalize(self, ends.close)
            try:
                return ends.ask(question)
            except WorkFailed:
                raise
            except BaseException:  # a signal of ours too: question and answer must stay in step
                ends.close()
                self._ends = None
                raise


class _Ends:
    """Our ends of the two pipes to a process, and its number."""

    def __init__(self, work: Callable[[Any], Any], seconds: float, megabytes: int) -> None:
        self.owner, self.seconds, self.megabytes = os.getpid(), seconds, megabytes
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
            self.pid = os.fork()
        if self.pid == 0:
            _serve(work, theirs_in, theirs_out, seconds, megabytes)
        os.close(theirs_in)
        os.close(theirs_out)

    def ask(self, question: Any) -> Any:
        data = pickle.dumps(question, pickle.HIGHEST_PROTOCOL)  # ours, to a copy of ourselves
        try:
            _write(self._out, _LENGTH.pack(len(data)) + data)
        except BrokenPipeError:
            raise self._ended() from None
        deadline = time.monotonic() + self.seconds
        used = self._seconds_used()
        head = self._read(_HEAD.size, deadline, used)
        kind, length = _HEAD.unpack(head)
        answer = marshal.loads(self._read(length, deadline + self.seconds, used))
        if kind == _DONE:
            return answer
        if kind == _HUGE:
            raise OutOfBounds(_too_much(self.megabytes))
        raise WorkFailed(*answer)

    def close(self) -> None:
        """End the process, wherever it is."""
        if self.owner != os.getpid():
            return
        self.owner = -1
        for end in (self._out, self._in):
            with contextlib.suppress(OSError):
                os.close(end)
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def _read(self, size: int, deadline: float, used: float | None) -> bytes:
        data = b""
        while len(data) < size:
            left = max(deadline - time.monotonic(), 0.2)
            if not select.select([self._in], [], [], left)[0]:
                self._refuse_if_late(deadline, used)
                continue
            piece = os.read(self._in, min(size - len(data), 2**20))
            if not piece:
                raise self._ended()
            data += piece
        return data

    def _refuse_if_late(self, deadline: float, used: float | None) -> None:
        over = time.monotonic() - deadline
        now = self._seconds_used()
        busy = now is not None and used is not None and now - used < self.seconds
        if over > 0 and not (busy and over < _LONGEST):
            raise OutOfBounds(f"did not end within {self.seconds:g} seconds")

    def _seconds_used(self) -> float | None:
        """Return the processor's seconds that the process has had; None where it is not told."""
        try:
            with open(f"/proc/{self.pid}/stat", encoding="ascii", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))

    def _ended(self) -> Exception:
        # Short of memory, Python may be ended by a signal before it can say so.
        return OutOfBounds(_too_much(self.megabytes))


def _too_much(megabytes: int) -> str:
    return f"took more than {megabytes:,} MB or made an endless text"


def _serve(
    work: Callable[[Any], Any], source: int, out: int, seconds: float, megabytes: int
) -> NoReturn:
    """Answer questions until there are no more; leave without touching anything of the parent's."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
        for number in (signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        source, out = _alone_with(source, out)
        _limit(megabytes)
        while head := _whole(source, _LENGTH.size):
            data = _whole(source, _LENGTH.unpack(head)[0])
            # Where the parent is gone, nobody else would end it.
            signal.setitimer(signal.ITIMER_REAL, seconds + _LONGEST + 1)
            kind, answer = _answered(work, data)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _write(out, _HEAD.pack(kind, len(answer)) + answer)
            if kind == _HUGE:
                break
    finally:
        os._exit(0)


def _answered(work: Callable[[Any], Any], data: bytes) -> tuple[bytes, bytes]:
    try:
        return _DONE, marshal.dumps(work(pickle.loads(data)))
    except MemoryError:
        return _HUGE, marshal.dumps(None)
    except BaseException as error:  # a panic of a Rust library is no Exception
        return _RAISED, marshal.dumps((type(error).__name__, str(error)[:2000]))


def _alone_with(source: int, out: int) -> tuple[int, int]:
    """Close every file but two: a lock or a socket of the parent's must not outlive it here."""
    source, out = os.dup(source), os.dup(out)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    first, second = sorted((source, out))
    os.closerange(3, first)
    os.closerange(first + 1, second)
    os.closerange(second + 1, max(second + 1, os.sysconf("SC_OPEN_MAX")))
    return source, out


def _limit(megabytes: int) -> None:
    """Allow so much memory beyond what the process has, and no file; macOS knows no such limit."""
    if sys.platform != "linux":
        return
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _whole(source: int, size: int) -> bytes:
    """Return so many bytes of a pipe; fewer where it has ended."""
    data = b""
    while len(data) < size and (piece := os.read(source, size - len(data))):
        data += piece
    return data


def _write(out: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(out, left) :]
