"""Files opened for what they are: plain ones, in our own folders, without following links.

A folder that came from somebody else may hold a link to a file of the user's, a pipe that nobody
writes into or a device that never ends, under the name of a file that llmft reads or appends to.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from llmft.api.errors import TrustError

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a link",
}
NOT_OURS = frozenset({"wandb"})
"""Folders of a run in which a library makes links of its own; llmft writes nothing there."""
_SAFELY = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def kind_of(mode: int) -> str:
    """Return what a file is in words: '' for a plain one, else such as 'a pipe'."""
    return "" if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "no plain file")


def open_to_read(path: str | os.PathLike[str]) -> int:
    """Return the descriptor of a plain file, whichever links lead to it; OSError for another kind.

    Opened without waiting, and asked only then what it is: a path could change between the two.
    """
    handle = os.open(path, os.O_RDONLY | _SAFELY)
    if kind := kind_of(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, f"it is {kind}, not a plain file", os.fspath(path))
    return handle


def read_bytes(path: str | os.PathLike[str], most: int | None = None) -> bytes:
    """Return what a plain file holds; OSError where it is another kind, or has more bytes."""
    with os.fdopen(open_to_read(path), "rb") as file:
        data = file.read() if most is None else file.read(most + 1)
    if most is not None and len(data) > most:
        what = f"it has more than {most:,} bytes, which no such file has"
        raise OSError(errno.EFBIG, what, os.fspath(path))
    return data


def read_text(path: str | os.PathLike[str], most: int | None = None) -> str:
    """Return the UTF-8 text of a plain file; OSError as `read_bytes`, ValueError if it is none."""
    return read_bytes(path, most).decode("utf-8")


def read_small(path: Path, most: int = 65536) -> str | None:
    """Return the text of a small plain file; None where it is missing or anything else."""
    try:
        return read_text(path, most)
    except (OSError, ValueError):
        return None


def open_own(path: Path, flags: int, mode: int = 0o600) -> int:
    """Open a file of a folder of ours to change it; TrustError (E605) unless it is a plain one.

    flags: os.O_WRONLY and the like. The last folder may not be a link, nor may the file: one name,
    one owner, no way to somewhere else. Nothing is changed before that is known.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        truncate, flags = flags & os.O_TRUNC, flags & ~os.O_TRUNC
        try:
            handle = os.open(path.name, flags | os.O_NOFOLLOW | _SAFELY, mode, dir_fd=folder)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                raise _not_ours(path, _kind_at(path)) from error
            raise
        try:
            told = os.fstat(handle)
            if kind := kind_of(told.st_mode):
                raise _not_ours(path, kind)
            if told.st_nlink > 1:
                raise _not_ours(path, "a second name of another file (a hard link)")
            reads = flags & (os.O_WRONLY | os.O_RDWR) == 0  # another rater's file may be read
            if not reads and told.st_uid not in (os.geteuid(), os.fstat(folder).st_uid):
                raise _not_ours(path, "another user's file")
            if truncate:
                os.ftruncate(handle, 0)
        except BaseException:
            os.close(handle)
            raise
    finally:
        os.close(folder)
    return handle


def read_own(path: Path, most: int) -> bytes:
    """Return what a file of a folder of ours holds; TrustError (E605) unless it is a plain one.

    TrustError, too, where it has more bytes than `most`.
    """
    with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise _not_ours(path, f"a file of more than {most:,} bytes")
    return data


def refuse_link(folder: Path) -> None:
    """Raise TrustError (E605) where a folder that we write in is a link to another place."""
    if folder.is_symlink():
        raise _not_ours(folder, "a link")


def refuse_links_below(folder: Path, skipped: frozenset[str] = frozenset()) -> None:
    """Raise TrustError (E605) for the first link, pipe or device anywhere in a folder.

    Links that lead to the folder are the user's own. skipped: names of folders directly in it that
    are not looked into, though they may not be links themselves.
    """
    for path, kind in _odd(folder, skipped):
        raise _not_ours(path, kind)


def _odd(folder: Path, skipped: frozenset[str]) -> Iterator[tuple[Path, str]]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in skipped:
                    yield from _odd(Path(entry.path), frozenset())
            elif not entry.is_file(follow_symlinks=False):
                mode = entry.stat(follow_symlinks=False).st_mode
                yield Path(entry.path), kind_of(mode)


def _kind_at(path: Path) -> str:
    try:
        return kind_of(path.lstat().st_mode) or "a link"
    except OSError:
        return "no plain file"


def _not_ours(path: Path, kind: str) -> TrustError:
    return TrustError(
        "E605",
        f"'{path}' is {kind}, and llmft follows none in its own folders",
        fix="take it away, or replace it by a copy of what it names, if that is meant",
    )
