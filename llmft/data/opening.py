"""Data files opened as bytes: unpacked where they are packed, lines ending with a line feed."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import IO, Any, cast

from llmft.api.errors import DataError

CUT = (EOFError, OSError, zlib.error)
"""What reading raises where a packed file is cut short or damaged."""

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_LOOKED_AT = 2**16


def opened(path: Path) -> IO[bytes]:
    """Return a file's bytes, unpacked where it is gzip or Zstandard, whatever its name says.

    Lines that end with a carriage return alone, as of old spreadsheets, end with a line feed.
    Raises DataError (E107) where the file may not be read.
    """
    try:
        with path.open("rb") as file:
            first = file.read(4)
        stream = _unpacked(path, first)
    except OSError as error:
        what = f"'{path}' cannot be read: {error.strerror or error}"
        raise DataError("E107", what, fix="change its permissions, or copy it") from error
    try:
        begin = stream.peek(_LOOKED_AT)  # type: ignore[attr-defined]
    except CUT:
        return stream  # told where it is read
    if b"\r" in begin[:-1] and b"\n" not in begin:
        return cast(IO[bytes], io.BufferedReader(cast(Any, _LineFeeds(stream))))
    return stream


def _unpacked(path: Path, first: bytes) -> IO[bytes]:
    if first[:2] == _GZIP:
        return cast(IO[bytes], io.BufferedReader(cast(Any, gzip.open(path, "rb")), _LOOKED_AT))
    if first == _ZSTD:
        import pyarrow

        packed = _Damaged(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))
        return cast(IO[bytes], io.BufferedReader(packed, _LOOKED_AT))
    return path.open("rb", buffering=_LOOKED_AT)


class _Damaged(io.RawIOBase):
    """A pyarrow stream that goes on failing where it failed once.

    pyarrow's own gives bytes of whatever memory it has after that.
    """

    def __init__(self, stream: Any) -> None:
        self._stream, self._failed = stream, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._failed:
            raise OSError("the packed data is damaged")
        try:
            piece = self._stream.read(len(buffer))
        except OSError:
            self._failed = True
            raise
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self._stream.close()
        super().close()


class _LineFeeds(io.RawIOBase):
    """A stream in which each carriage return is a line feed."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._stream.read(len(buffer)).replace(b"\r", b"\n")
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self._stream.close()
        super().close()
