"""The copy of a run in a remote folder: whole at every moment, and checked on the way back.

    files/<sha256>-<name>   what the run holds; such a file is never changed
    copy-<number>.json      the index: which of them, under which paths, are the run now

A copy first writes the files that the last index does not name, then the next index, and then
takes the others away. So a kill leaves the old index or the new one, with all of its files. An
index holds its own sum, for file systems on which a kill can leave half of one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from llmft.api.errors import CheckpointError, EnvironmentFault, RecipeError
from llmft.api.shown_text import on_one_line
from llmft.hub.remote_folder import Content, RemoteFolder
from llmft.system import fsio

_INDEX = re.compile(r"copy-(\d{8})\.json")
_FORMAT = 1
_PROBE = "files/probe"
_OURS = re.compile(rf"files/[0-9a-f]{{64}}-.+|{_PROBE}|{_INDEX.pattern}")
_RUN_ID = re.compile(r"[^./\x00-\x1f][^/\x00-\x1f]{0,199}")
"""The name of a run's folder; people rename theirs."""
_TRIES = 3


@dataclass(frozen=True)
class Index:
    """What a copy holds.

    name: the recipe's. at: how far the run was. files: the sum and the size of each, by its path.
    """

    number: int
    run_id: str
    name: str
    at: str
    files: Mapping[str, tuple[str, int]]

    @property
    def file(self) -> str:
        """The name of the index itself."""
        return f"copy-{self.number:08}.json"

    def places(self) -> set[str]:
        """Return the names of the files in the remote folder."""
        return {_place(path, sha) for path, (sha, _) in self.files.items()}

    def as_bytes(self) -> bytes:
        """Return the index as it is written."""
        told = {
            "format": _FORMAT, "number": self.number, "run_id": self.run_id, "name": self.name,
            "at": self.at, "time": time.strftime("%Y-%m-%d %H:%M:%S"),
            "files": {path: {"sha256": s, "size": n} for path, (s, n) in self.files.items()},
        }  # fmt: skip
        return _json({**told, "sha256": hashlib.sha256(_json(told)).hexdigest()})


def _json(told: Mapping[str, Any]) -> bytes:
    return (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode()


def _place(path: str, sha: str) -> str:
    return f"files/{sha}-{PurePosixPath(path).name}"


def newest(remote: RemoteFolder) -> Index | None:
    """Return the newest index that is whole, or None where there is none.

    Raises CheckpointError (E229) where it is not one that this version reads.
    """
    for name in sorted((n for n in remote.names() if _INDEX.fullmatch(n)), reverse=True):
        try:
            told = json.loads(remote.read(name))
            wanted = told.pop("sha256")
            if hashlib.sha256(_json(told)).hexdigest() != wanted:
                continue  # torn by a kill: the one before it is there still
            if told["format"] != _FORMAT:
                what = f"'{name}' was written by another version of llmft (form {told['format']})"
                raise CheckpointError("E229", what, fix="use that version")
            files = {
                _own_path(path): (str(one["sha256"]), int(one["size"]))
                for path, one in told["files"].items()
            }
            number, run_id = int(told["number"]), str(told["run_id"])
        except FileNotFoundError:
            continue  # taken away by a copy that goes on
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        if not _RUN_ID.fullmatch(run_id):
            continue
        return Index(number, run_id, str(told["name"]), str(told["at"]), files)
    return None


def _own_path(path: str) -> str:
    """Return a path in a run's folder; ValueError where it leads out of it."""
    parts = PurePosixPath(path)
    if not path or parts.is_absolute() or ".." in parts.parts or str(parts) != path or "\0" in path:
        raise ValueError(path)
    return path


def claim(remote: RemoteFolder, address: str, run_id: str | None) -> None:
    """Raise E228 where the folder has another run, or cannot be written to.

    run_id: of the run that is to be copied; None: of a new one.
    """
    if run_id is not None and not _RUN_ID.fullmatch(run_id):
        what = f"no run is fetched into a folder called '{on_one_line(run_id)[:80]}'"
        raise RecipeError("E228", what, fix="rename the run's folder")
    refuse_another(newest(remote), address, run_id)
    remote.put({_PROBE: b"llmft\n"}, (), "see whether this can be written to")
    remote.put({}, (_PROBE,), "see whether this can be written to")


def refuse_another(found: Index | None, address: str, run_id: str | None) -> None:
    """Raise RecipeError (E228) where what was found at an address is of another run."""
    if found is not None and found.run_id != run_id:
        raise RecipeError(
            "E228",
            f"'{address}' holds the run '{found.run_id}' of '{found.name}' ({found.at})",
            fix=f"continue that run with --resume-from {address}, or give another address",
        )


def last_number(remote: RemoteFolder) -> int:
    """Return the number of the last index, be it whole or not; 0 where there is none."""
    return _last(remote.names())


def _last(names: Iterable[str]) -> int:
    return max((int(m[1]) for name in names if (m := _INDEX.fullmatch(name))), default=0)


def publish(remote: RemoteFolder, folder: Path, index: Index, before: Index | None) -> int:
    """Make a folder's files the copy, and return how many bytes were sent.

    index: of the folder, see `index_of`. before: the index that this process has written last.
    Raises EnvironmentFault (E229) where another process has written one meanwhile.
    """
    there = remote.names()
    if _last(there) >= index.number:
        what = "another process copies a run to the same address"
        raise EnvironmentFault("E229", what, fix="end one of the two")
    known = before.places() if before else set()
    files: dict[str, Content] = {}
    size = 0
    for path, (sha, length) in index.files.items():
        if (place := _place(path, sha)) not in known & there:
            files[place] = folder / path
            size += length
    stays = {*index.places(), index.file}
    gone = {name for name in there - stays if _OURS.fullmatch(name)}
    remote.put({**files, index.file: index.as_bytes()}, sorted(gone), f"{index.name}, {index.at}")
    return size


def index_of(folder: Path, number: int, run_id: str, name: str, at: str) -> Index:
    """Return the index of what a folder holds; sums that a manifest tells are not made again."""
    files: dict[str, tuple[str, int]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        own = str(path.relative_to(folder))
        sha = _told_sum(path) or fsio.sha256(path)
        files[own] = (sha, path.stat().st_size)
    return Index(number, run_id, name, at, files)


def _told_sum(path: Path) -> str | None:
    """Return what a manifest beside a file says of it, or None."""
    manifest = path.parent / fsio.MANIFEST
    if path.name == fsio.MANIFEST or not manifest.is_file():
        return None
    found = json.loads(manifest.read_text("utf-8"))["sha256"].get(path.name)
    return found if isinstance(found, str) else None


def fetch(
    remote: RemoteFolder, address: str, parent: Path, name: str, note: Callable[[str], None]
) -> Path:
    """Bring a copy back as a run's folder under `parent`, and return that.

    name: of the recipe that is to go on. note: is told what is left out.
    Raises CheckpointError (E229) where there is no copy, one of another recipe, or a damaged one,
    and RecipeError (E090) where the run is here already.
    """
    index = newest(remote)
    if index is None:
        what = f"'{address}' holds no copy of a run"
        raise CheckpointError("E229", what, fix="check the address, or start a run without it")
    if index.name != name:
        what = f"'{address}' holds a run of '{index.name}', and this recipe is called '{name}'"
        raise CheckpointError("E229", what, fix="give the recipe that the run was started with")
    target = parent / index.run_id
    if os.path.lexists(target):
        what = f"the run '{index.run_id}' is here already: '{target}'"
        fix = "continue it with: llmft run RECIPE RUN_FOLDER --resume"
        raise RecipeError("E090", what, fix=fix)
    with fsio.disk_errors(target):
        parent.mkdir(parents=True, exist_ok=True)
        _refuse_small_disk(parent, sum(size for _, size in index.files.values()))
        staged = Path(tempfile.mkdtemp(dir=parent, prefix=f"{fsio.STAGING}{index.run_id}-"))
        try:
            index = _fetch_newest(remote, address, index, staged, note)
            os.rename(staged, target)
            fsio.sync_folder(parent)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
    note(f"the copy of '{index.run_id}' ({index.at}) was fetched from {address}")
    return target


def _refuse_small_disk(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        what = f"the copy has {size / 1e6:,.1f} MB, and the disk has {free / 1e6:,.1f} MB free"
        raise EnvironmentFault("E202", what, fix="free some space, or give another --output-dir")


def _fetch_newest(
    remote: RemoteFolder, address: str, index: Index, staged: Path, note: Callable[[str], None]
) -> Index:
    """Fetch an index's files; where a copy that goes on took one away, those of the next index."""
    for _ in range(_TRIES):
        damaged = _fetch_files(remote, index, staged)
        if not damaged:
            return index
        found = newest(remote)
        if found is None or found.number == index.number or found.run_id != index.run_id:
            break
        index = found
    for path in damaged:
        step = PurePosixPath(path).parent
        if step.parent.name != "checkpoints":
            what = f"'{path}' of the copy at '{address}' is damaged or missing"
            raise CheckpointError("E229", what, fix="use another copy, or start a new run")
        if (staged / step).is_dir():
            note(f"'{path}' of the copy is damaged or missing, so {step.name} is left out")
            shutil.rmtree(staged / step)
    return index


def _fetch_files(remote: RemoteFolder, index: Index, staged: Path) -> list[str]:
    """Write an index's files below a folder; return those whose bytes are not to be had."""
    damaged = []
    for path, (sha, size) in index.files.items():
        target = staged / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if not (target.is_file() and _is(target, sha, size)):
                remote.fetch(_place(path, sha), target)
        except FileNotFoundError:
            damaged.append(path)
            continue
        if not _is(target, sha, size):
            damaged.append(path)
    for found in staged.rglob("*"):
        if found.is_file() and str(found.relative_to(staged)) not in index.files:
            found.unlink()  # of the index that was tried before
    return damaged


def _is(path: Path, sha: str, size: int) -> bool:
    return path.stat().st_size == size and fsio.sha256(path) == sha
