"""Code of the user's own, which runs only where the command line says `--trust file:FILE`.

A recipe names a file; it cannot grant that the file runs. What is granted belongs to this process.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from llmft.api.errors import DataError, LlmftError, RecipeError, TrustError
from llmft.system.nearest import did_you_mean
from llmft.system.plain_files import read_bytes
from llmft.system.time_limit import TimeUp

_FILE = "file:"
_LARGEST = 2**20
_LEAST = 16  # digits of a hash: fewer, and another file with them can be made in hours
_DIGEST = re.compile(rf"[0-9a-fA-F]{{{_LEAST},64}}")
_granted: dict[Path, str] = {}  # and how the SHA-256 must begin; '' for any
_loaded: dict[tuple[Path, str], ModuleType] = {}
_given: list[str] = []


def grant(asked: Sequence[str]) -> None:
    """Let files of code run in this process: `file:rows.py`, or `file:rows.py@SHA256`.

    Raises RecipeError (E090) where one is not written so.
    """
    for text in asked:
        path, at, digest = _parts(text.removeprefix(_FILE))
        if not text.startswith(_FILE) or not path:
            raise RecipeError(
                "E090", f"--trust '{text}' names no file", fix="write --trust file:my_rows.py"
            )
        if at and not _DIGEST.fullmatch(digest):
            raise RecipeError(
                "E090",
                f"--trust '{text}' does not say which content is trusted",
                fix=f"write {_LEAST} to 64 digits of its SHA-256 after the @, or leave the @ out",
            )
        _granted[_real(path)] = digest.lower()
        _given.append(text)


def _parts(named: str) -> tuple[str, str, str]:
    """Return the file, '@' or '', and the digest; a folder's name may have an @ too."""
    path, at, digest = named.rpartition("@")
    return (path, at, digest) if at and "/" not in digest else (named, "", "")


def granted() -> list[str]:
    """Return what was granted, as `--trust` takes it."""
    return list(_given)


def revoke_all() -> None:
    """Let no file run any more."""
    _granted.clear()
    _given.clear()
    _loaded.clear()


def is_trusted(path: str) -> bool:
    """Return whether a file may run as it is now."""
    begins = _granted.get(_real(path))
    return begins is not None and digest_of(path).startswith(begins)


def digest_of(path: str) -> str:
    """Return the SHA-256 of a file of code; DataError (E107) where it cannot be read."""
    return hashlib.sha256(_source(path)).hexdigest()


def refusal(path: str) -> TrustError:
    """Return the error that a file may not run, which says what to type."""
    digest, asked = digest_of(path), _granted.get(_real(path))
    what = f"'{path}' is code (SHA-256 {digest[:_LEAST]}), and a recipe alone never runs code"
    if asked:
        what = f"'{path}' has the SHA-256 {digest[:_LEAST]}, and {asked[:_LEAST]} is trusted"
    return TrustError("E607", what, fix=f"read it, then add --trust {shlex.quote(_FILE + path)}")


def trusted_function(path: str, name: str) -> Callable[..., Any]:
    """Return a function of a trusted file, which has run once.

    Raises TrustError (E607) where it is not trusted, DataError (E107, E121) where it cannot run.
    """
    if not is_trusted(path):
        raise refusal(path)
    source = _source(path)
    key = (_real(path), hashlib.sha256(source).hexdigest())
    if not key[1].startswith(_granted[key[0]]):
        raise refusal(path)
    if key not in _loaded:
        module = ModuleType(f"trusted_{key[1][:12]}")
        module.__file__ = str(key[0])
        sys.modules[module.__name__] = module  # dataclasses look their module up
        call_trusted(path, lambda: exec(compile(source, str(key[0]), "exec"), module.__dict__))
        _loaded[key] = module
    found = getattr(_loaded[key], name, None)
    if not callable(found):
        names = [k for k, v in vars(_loaded[key]).items() if callable(v) and not k.startswith("_")]
        raise DataError(
            "E121",
            f"'{path}' has no function '{name}'" + (f" (it has: {', '.join(names)})" * bool(names)),
            fix=did_you_mean(name, names) or f"define {name} there, or name another as function",
        )
    function: Callable[..., Any] = found
    return function


def call_trusted(path: str, function: Callable[..., Any], *values: Any, **named: Any) -> Any:
    """Return what a function of a trusted file returns; what it raises becomes DataError (E121)."""
    try:
        return function(*values, **named)
    except (LlmftError, TimeUp):
        raise
    except (Exception, SystemExit) as error:
        raise failed(path, error) from error


def trusted_items(path: str, given: Any) -> Iterator[Any]:
    """Yield what a function of a trusted file gave to go through; errors as of `call_trusted`."""
    iterator = call_trusted(path, iter, given)
    while (item := call_trusted(path, next, iterator, _END)) is not _END:
        yield item


_END = object()


def failed(path: str, error: BaseException) -> DataError:
    """Return what code raised as an error that names its line."""
    real = str(_real(path))
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == real
    ]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    where = f"{path}:{line}" if line else path
    said = " ".join(str(error).split())[:300]
    return DataError(
        "E121", f"{where}: {type(error).__name__}: {said}".rstrip(": "), fix="correct the code"
    )


def _real(path: str) -> Path:
    return Path(os.path.realpath(Path(path).expanduser()))


def _source(path: str) -> bytes:
    real = _real(path)
    try:
        return read_bytes(real, _LARGEST)
    except FileNotFoundError as error:
        raise DataError("E107", f"there is no file '{path}'", fix="check the path") from error
    except OSError as error:
        what = f"'{path}' cannot be read: {error.strerror}"
        raise DataError("E107", what, fix="name a file of code that you may read") from error
