"""Which local files make a split: one file, a pattern, or the files and shards of a folder."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from llmft.api.errors import DataError
from llmft.system.nearest import did_you_mean

FORMATS = (".jsonl", ".json", ".csv", ".parquet", ".txt")
ENDINGS = tuple(
    f"{form}{packing}"
    for form in FORMATS
    for packing in (("",) if form == ".parquet" else ("", ".gz", ".zst"))
)
"""The endings of files that are read; parquet packs its own pages."""

# The hub once put a hash behind the number.
_SHARD = re.compile(r"-(?P<number>\d+)-of-(?P<count>\d+)(?:-[0-9a-f]{16})?$")
_PATTERN = re.compile(r"[*?\[]")
_MOST_FILES = 100_000
_END = 2**20  # bytes


_ON_THE_HUB = re.compile(r"https://(?:huggingface\.co|hf\.co)/datasets/([\w.-]+/[\w.-]+)")


def files_of(path: str | None, split: str, data_files: Mapping[str, str] | None) -> list[Path]:
    """Return the files of one whole split, in the order in which they are read.

    path: a file or a pattern of files (either is the whole 'train' split), a folder, or
        'embedded:<name>'. data_files: a file or a pattern for each split, in place of path.
    Raises DataError: E107 where a file is missing, also one shard of several; E109 where the split
    is not there, or stands there in several formats.
    """
    if data_files:
        if split not in data_files:
            raise DataError(
                "E109",
                f"no split '{split}' (data_files has: {', '.join(data_files)})",
                fix=did_you_mean(split, list(data_files))
                or "name its file under data.data_files, or hold rows out: evaluate.holdout",
            )
        named = data_files[split]
        return _matching(named) if is_pattern(named) else [Path(named).expanduser()]
    if path is None:
        raise DataError("E109", "neither path nor data_files is given", fix="give one of them")
    if path.startswith("embedded:"):
        return [_embedded(path.removeprefix("embedded:"), split)]
    local = Path(path).expanduser()
    if local.is_dir():
        return _in_folder(local, split)
    if not local.exists() and not is_pattern(path):
        fix = "check data.path"
        if hub := _ON_THE_HUB.match(path):
            fix = f"write '{hub[1]}', its name on the hub"
        elif "://" in path:
            fix = "no address is read: download it, and write its path"
        raise DataError("E107", f"there is no file '{path}'", fix=fix)
    if split != "train":
        what = "is one file" if local.exists() else "is one pattern"
        raise DataError(
            "E109",
            f"'{path}' {what}, so there is no split '{split}'",
            fix="name the files under data.data_files, or hold rows out: evaluate.holdout",
        )
    return [local] if local.exists() else _matching(path)


def is_pattern(path: str) -> bool:
    """Return whether a path is a pattern of file names; a file of that very name is none."""
    return bool(_PATTERN.search(path)) and not Path(path).expanduser().exists()


def names_files(path: str) -> bool:
    """Return whether a data set's path means files here, whether they exist or not; else a hub id.

    The same rule tells a missing file from a hub id.
    """
    if path.startswith("embedded:") or Path(path).expanduser().exists() or is_pattern(path):
        return True
    return path.endswith(ENDINGS) or path.startswith((".", "/", "~")) or path.count("/") != 1


def size_and_ends(file: Path) -> tuple[int, str]:
    """Return a file's size, and the SHA-256 of its first and last MB: what is told without reading.

    Raises DataError (E107) where it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            hasher = hashlib.sha256(stream.read(_END))
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(size - _END, 0))
            hasher.update(stream.read(_END))
    except OSError as error:
        what = f"'{file}' cannot be read: {error.strerror or error}"
        raise DataError("E107", what, fix="change its permissions, or copy it") from error
    return size, hasher.hexdigest()


def stem(file: Path) -> str:
    """Return a file's name without its format and packing."""
    return file.name.removesuffix(_ending(file))


def _ending(file: Path) -> str:
    return max((ending for ending in ENDINGS if file.name.endswith(ending)), key=len, default="")


def _matching(pattern: str) -> list[Path]:
    found: list[Path] = []
    for name in glob.iglob(str(Path(pattern).expanduser()), recursive=True):
        if Path(name).is_file():
            found.append(Path(name))
        if len(found) > _MOST_FILES:
            raise DataError("E107", f"'{pattern}' fits more than {_MOST_FILES:,} files")
    if not found:
        raise DataError("E107", f"no file fits '{pattern}'", fix="check data.path")
    unread = sorted(file for file in found if not _ending(file))
    if unread:
        raise DataError(
            "E107",
            f"'{pattern}' fits '{unread[0]}', which has an unknown file extension",
            fix=f"write the extension in the pattern, such as *.jsonl; read are {_LISTED}",
        )
    return _whole(sorted(found), f"'{pattern}'")


_LISTED = ", ".join(ENDINGS)


def _in_folder(folder: Path, split: str) -> list[Path]:
    """Return the files of a split: <split>.jsonl, its shards, or the files of a folder <split>."""
    for place in (folder, folder / "data"):
        files = list(_data_files(place))
        named = [file for file in files if stem(file) == split]
        shards = [file for file in files if _is_shard(file, split)]
        inside = list(_data_files(place / split))
        if named and shards:
            raise DataError(
                "E109",
                f"'{place}' has both '{named[0].name}' and '{shards[0].name}' for the split"
                f" '{split}'",
                fix="name the ones that are meant under data.data_files",
            )
        if found := named or shards or inside:
            return _whole(found, f"the split '{split}' in '{place}'")
    there = sorted({
        _SHARD.sub("", stem(file))
        for place in (folder, folder / "data")
        for file in _data_files(place)
    })  # fmt: skip
    raise DataError(
        "E109",
        f"'{folder}' has no file for the split '{split}'"
        + (f" (it has: {', '.join(there[:8])})" if there else ""),
        fix=did_you_mean(split, there)
        or f"put {split}.jsonl there, name the files under data.data_files, or write a pattern such"
        " as folder/*.jsonl as data.path",
    )


def _is_shard(file: Path, split: str) -> bool:
    if file.name.endswith(".parquet") and stem(file).startswith(f"{split}-"):
        return True
    return re.fullmatch(rf"{re.escape(split)}[-_]\d+(?:-of-\d+)?", stem(file)) is not None


def _data_files(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from sorted(f for f in folder.iterdir() if _ending(f) and f.is_file())


def _whole(files: Sequence[Path], what: str) -> list[Path]:
    """Return the files of a split; DataError where formats differ or a shard is missing."""
    formats = {_ending(file): file for file in reversed(files)}
    if len(formats) > 1:
        names = " and ".join(f"'{file.name}'" for _, file in sorted(formats.items()))
        raise DataError(
            "E109",
            f"{what} is there in several formats: {names}",
            fix="name the ones that are meant under data.data_files, or as data.path",
        )
    _refuse_missing(files, what)
    return list(files)


def _refuse_missing(files: Sequence[Path], what: str) -> None:
    """Raise DataError (E107) where files are called n of N and one of the N is not there."""
    groups: dict[tuple[Path, str, str], dict[int, Path]] = {}
    for file in files:
        if found := _SHARD.search(stem(file)):
            key = (file.parent, _SHARD.sub("", stem(file)), found["count"])
            groups.setdefault(key, {})[int(found["number"])] = file
    for (_, _, count), shards in groups.items():
        first = 1 if int(count) in shards else 0
        absent = next((n for n in range(first, first + int(count)) if n not in shards), None)
        if absent is not None:
            file = next(iter(shards.values()))
            found = _SHARD.search(stem(file))
            assert found is not None
            number = str(absent).rjust(len(found["number"]), "0")
            name = f"{stem(file)[: found.start()]}-{number}-of-{count}{_ending(file)}"
            raise DataError(
                "E107",
                f"{what} has {len(shards)} of {int(count)} shards: '{name}' is missing",
                fix="fetch it, or rename the files where the others alone are meant",
            )


def _embedded(name: str, split: str) -> Path:
    from llmft import assets

    ending = {"train": "train", "validation": "eval"}.get(split, split)
    is_whole = f"data/{name}.jsonl" in assets.available()
    whole = split == "train" and is_whole
    if is_whole and not whole:
        raise DataError(
            "E109",
            f"'embedded:{name}' is one file, so there is no split '{split}'",
            fix="hold rows out: evaluate.holdout",
        )
    try:
        return assets.locate(f"data/{name}.jsonl" if whole else f"data/{name}_{ending}.jsonl")
    except ValueError as error:
        raise DataError("E109", str(error)) from error
