"""One process at a time in a run folder, and a trace of one that was killed.

The lock is the kernel's (flock), so a kill frees it; the file says who holds it and how far it is.
A process that leaves by itself takes the file away, so a file nobody holds tells of a kill.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmft.api.errors import EnvironmentFault
from llmft.system import fsio
from llmft.system.plain_files import open_own

NAME = "lock"
_SIZE = 512
_NOT_HERE = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@dataclass
class Lock:
    """A lock that is held.

    killed: what the file of a process that never left says: pid, host, started and at; else None.
    """

    handle: int
    holder: dict[str, Any]
    killed: Mapping[str, Any] | None = None

    def tell(self, at: str) -> None:
        """Write how far the run is, for whoever finds the file after a kill; takes microseconds."""
        text = json.dumps({**self.holder, "at": at})[: _SIZE - 1]
        os.pwrite(self.handle, text.ljust(_SIZE - 1).encode() + b"\n", 0)


@contextmanager
def held(folder: Path, name: str = NAME, *, break_lock: bool = False) -> Iterator[Lock]:
    """Hold a folder's lock while the block runs; raise EnvironmentFault if another does.

    break_lock: overrule a holder that cannot be asked whether it lives.
    """
    path = folder / name
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot": boot_id(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    with fsio.disk_errors(path):
        handle, there = _take(path, break_lock)
        lock = Lock(handle, holder, there)
        lock.tell("the start")
    try:
        yield lock
    finally:
        path.unlink(missing_ok=True)  # while it is held: the next one makes a new file
        os.close(handle)


def _take(path: Path, break_lock: bool) -> tuple[int, Mapping[str, Any] | None]:
    while True:
        there = path.exists()
        handle = open_own(path, os.O_RDWR | os.O_CREAT)
        try:
            before = _read(handle) if there else None
            _flock(handle, path, before, break_lock)
        except BaseException:
            os.close(handle)
            raise
        if path.exists() and os.path.samestat(os.fstat(handle), path.lstat()):
            return handle, before
        os.close(handle)  # its holder left, and took the file away, while we waited to open it


def _flock(handle: int, path: Path, before: Mapping[str, Any] | None, break_lock: bool) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _in_use(path, before or {}) from error
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
        if before is not None and _may_live(before) and not break_lock:
            raise _in_use(path, before, known=False) from error


def _may_live(holder: Mapping[str, Any]) -> bool:
    """Return whether the holder could still run, where the file system knows no locks."""
    if holder.get("host") != socket.gethostname():
        return True
    if holder.get("boot") not in (None, boot_id()):
        return False  # this machine has started anew since
    try:
        os.kill(int(holder["pid"]), 0)
    except (ProcessLookupError, KeyError, ValueError, TypeError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def alive(path: Path) -> bool:
    """Return whether a lock's file names a process that may still run; False where there is none.

    The lock itself is not touched.
    """
    try:
        handle = open_own(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return _may_live(_read(handle))
    finally:
        os.close(handle)


def boot_id() -> str | None:
    """Return what names this start of the machine; None where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return None


def _in_use(path: Path, holder: Mapping[str, Any], known: bool = True) -> EnvironmentFault:
    """Return the error. known: the kernel says that the holder runs, not its file alone."""
    who = (
        f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('started')}"
        if holder
        else "another process"
    )
    fix = "wait for it or stop it"
    if not known:
        fix += "; this file system has no locks: if that process no longer runs, use --break-lock"
    return EnvironmentFault("E204", f"'{path.parent}' is in use by {who}", fix=fix)


def _read(handle: int) -> Mapping[str, Any]:
    """Return what the file says; {} where it was killed before it could say anything."""
    try:
        said = json.loads(os.pread(handle, _SIZE, 0))
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
