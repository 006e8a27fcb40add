"""Token rows kept between runs, by content: the same rows and tokenizer are not tokenised twice.

Under LLMFT_CACHE, else XDG_CACHE_HOME/llmft, else ~/.cache/llmft; LLMFT_CACHE=off keeps nothing.
An entry holds token ids, so it tells what the rows say: the folder is its owner's alone. The cache
never changes a number and never stops a run: what is damaged is made again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from llmft import __version__
from llmft.api import Encoded, Row
from llmft.api.errors import LlmftError
from llmft.api.rows import IGNORED
from llmft.system import fsio

LEAST_ROWS = 2000
"""Fewer rows are tokenised sooner than an entry is found, read and checked."""
LARGEST = 2**30
"""Bytes of all entries together; those that were not used for longest go first."""
_FORMAT = "3"
_ENTRY = re.compile(r"[0-9a-f]{64}\.safetensors")

log = logging.getLogger("llmft")


def through_cache(
    tokenizer: Any,
    rows: Sequence[Row],
    groups: int,
    kind: str,
    make: Callable[[], Iterable[Sequence[Encoded]]],
    facts: Counter[str],
) -> Iterable[Sequence[Encoded]]:
    """Return what `make` gives, from an earlier run where one made it of equal rows.

    kind: what is made of a row; part of the key. groups: of so many rows, in order and of equal
    size, something is made together. make: gives the token rows of each group, each with labels
    that are its ids or -100, and the origin of the group's first row; it counts in `facts`, which
    are kept too.
    """
    folder = cache_folder("tokens")
    text = _described(tokenizer)
    if folder is None or text is None or len(rows) < LEAST_ROWS:
        return make()
    path = folder / f"{_key(text, rows, kind)}.safetensors"
    origins = [row.origin for row in rows[:: len(rows) // groups]]
    found = _read(path, origins, facts)
    if found is not None:
        return found
    made = list(make())
    _write(path, made, facts)
    return made


def cache_folder(kind: str) -> Path | None:
    """Return where entries of a kind are kept; None where the user wants none kept."""
    asked = os.environ.get("LLMFT_CACHE")
    if asked == "off":
        return None
    if asked:
        return Path(asked) / kind
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "llmft" / kind


def own_lines(kind: str, about: str) -> Path | None:
    """Return the user's own file of JSON lines about something; None where none is to be kept."""
    folder = cache_folder(kind)
    if folder is None:
        return None
    with fsio.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _refuse_others(folder)
    return folder / f"{hashlib.sha256(about.encode()).hexdigest()}.jsonl"


def _described(tokenizer: Any) -> str | None:
    """Return all that decides a tokenizer's ids, or None where it cannot be told."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    rest = (type(tokenizer).__name__, tokenizer.chat_template, tokenizer.special_tokens_map)
    flags = (tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id)
    return f"{rest}{flags}{backend.to_str()}"


def _key(tokenizer: str, rows: Sequence[Row], kind: str) -> str:
    hasher = hashlib.sha256(f"{_FORMAT} {__version__} {_code()} {kind} {len(rows)}".encode())
    hasher.update(tokenizer.encode("utf-8", "surrogatepass"))
    for row in rows:
        hasher.update(repr(row).encode("utf-8", "surrogatepass"))
    return hasher.hexdigest()


@lru_cache(maxsize=1)
def _code() -> str:
    """Return a hash of the code that makes entries, and the versions of what it calls."""
    import tokenizers
    import transformers

    hasher = hashlib.sha256(f"{tokenizers.__version__} {transformers.__version__}".encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        hasher.update(file.read_bytes())
    return hasher.hexdigest()


def _read(path: Path, origins: Sequence[str], facts: Counter[str]) -> list[list[Encoded]] | None:
    """Return an entry's token rows, or None where there is none, or a damaged one."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        data = _own_bytes(path)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            log.warning("'%s' is not taken (%s), so the rows are tokenised again", path, error)
        return None
    digest, body = data[:32], data[32:]
    try:
        if _digest(path, body) != digest:
            raise ValueError("its checksum is wrong")
        found = load(body)
        made = list(_unpacked(found, origins))
        counted = json.loads(found["facts"].tobytes())
    except (SafetensorError, ValueError, KeyError) as error:
        log.warning("'%s' is damaged (%s), so the rows are tokenised again", path, error)
        return None
    facts.update(counted)
    with suppress(OSError):
        os.utime(path)  # used now
    return made


def _own_bytes(path: Path) -> bytes:
    """Return what an entry holds; OSError unless it is a plain file that only this user writes.

    Another's entry could train on other tokens than the rows say, with nothing to show it.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        told = os.fstat(file.fileno())
        own = stat.S_ISREG(told.st_mode) and told.st_uid == os.geteuid()
        if not own or told.st_mode & 0o022:
            raise PermissionError(errno.EPERM, "others may have written it")
        return file.read()


def _digest(path: Path, body: bytes) -> bytes:
    """Return the checksum of an entry, which holds for one name only: none can be swapped."""
    return hashlib.sha256(path.name.encode() + body).digest()


def _unpacked(found: Any, origins: Sequence[str]) -> Iterator[list[Encoded]]:
    import numpy as np

    ids, learnt = found["ids"], found["learnt"]
    labels = np.where(learnt, ids, IGNORED).tolist()
    ids, start = ids.tolist(), 0
    lengths = iter(found["lengths"].tolist())
    for origin, count in zip(origins, found["counts"].tolist(), strict=True):
        rows = []
        for length in islice(lengths, count):
            end = start + length
            rows.append(Encoded(tuple(ids[start:end]), tuple(labels[start:end]), origin))
            start = end
        yield rows


def _write(path: Path, groups: Sequence[Sequence[Encoded]], facts: Counter[str]) -> None:
    """Keep token rows for the next run, if they are of the form that `_unpacked` gives back."""
    import numpy as np
    from safetensors.numpy import save

    made = [row for group in groups for row in group]
    ids = np.fromiter((i for row in made for i in row.input_ids), np.int32)
    labels = np.fromiter((i for row in made for i in row.labels), np.int32)
    lengths = np.array([len(row.input_ids) for row in made], np.int32)
    counts = np.array([len(group) for group in groups], np.int32)
    said = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    learnt = labels != IGNORED
    if len(ids) != len(labels) or (labels != ids)[learnt].any():
        return
    body = save({"ids": ids, "learnt": learnt, "lengths": lengths, "counts": counts, "facts": said})
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _refuse_others(path.parent)
        _make_room(path.parent, len(body))
        fsio.write_bytes(path, _digest(path, body) + body)
    except (OSError, LlmftError) as error:
        log.warning("the token rows are not kept for the next run: %s", error)


def _refuse_others(folder: Path) -> None:
    """Raise PermissionError unless a folder is this user's alone to write in, and no link.

    A link could lead to a folder of weights, of which the oldest would be removed.
    """
    told = folder.lstat()
    own = stat.S_ISDIR(told.st_mode) and told.st_uid == os.geteuid()
    if not own or told.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "it is a link, or others may write in it", str(folder))


def _make_room(folder: Path, size: int) -> None:
    """Remove the entries that were not used for longest, until one more of a size fits."""
    own = [path for path in folder.iterdir() if _ENTRY.fullmatch(path.name)]
    entries = sorted((path.lstat().st_mtime, path) for path in own)
    total = sum(path.lstat().st_size for _, path in entries)
    for _, path in entries:
        if total + size <= LARGEST:
            break
        total -= path.lstat().st_size
        path.unlink(missing_ok=True)
