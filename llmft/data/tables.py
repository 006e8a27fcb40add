"""Raw records from local files and from the hub, each with the place it came from."""

from __future__ import annotations

import csv
import gzip
import io
import json
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from llmft.api.errors import DataError
from llmft.data.hub_tables import hub_records

Record = tuple[str, Mapping[str, Any]]
_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")
# One record longer than this is no training row; reading it would only fill the memory.
_LONGEST_LINE = 64 * 2**20
_A_LIST = "if the file is one list, name the file .json"


def read_records(
    path: str | None,
    split: str,
    *,
    data_files: Mapping[str, str] | None = None,
    subset: str | None = None,
    revision: str | None = None,
) -> Iterator[Record]:
    """Yield (origin, record) of a split: of a file, a folder of <split> files, or a hub data set.

    path: a .jsonl, .json, .csv or .parquet file (.gz too), which is the whole 'train' split; a
        folder; 'embedded:<name>'; or a hub id. data_files: a file for each split, instead of path.
    Raises DataError (E107, E109) and EnvironmentFault (E201).
    """
    if data_files:
        if split not in data_files:
            raise DataError(
                "E109",
                f"no split '{split}' (data_files has: {', '.join(data_files)})",
                fix="name its file under data.data_files, or hold rows out: evaluate.holdout",
            )
        yield from read_file(Path(data_files[split]).expanduser())
        return
    if path is None:
        raise DataError("E109", "neither path nor data_files is given", fix="give one of them")
    if path.startswith("embedded:"):
        yield from read_file(_embedded(path.removeprefix("embedded:"), split))
        return
    local = Path(path).expanduser()
    if local.is_dir():
        for file in _split_files(local, split):
            yield from read_file(file)
    elif local.exists():
        if split != "train":
            raise DataError(
                "E109",
                f"'{path}' is one file, so there is no split '{split}'",
                fix="name the files under data.data_files, or hold rows out: evaluate.holdout",
            )
        yield from read_file(local)
    elif names_files(path):
        raise DataError("E107", f"there is no file '{path}'", fix="check data.path")
    else:
        yield from hub_records(path, subset, split, revision)


def names_files(path: str) -> bool:
    """Return whether a data set's path means files here, whether they exist or not; else a hub id.

    The same rule tells a missing file from a hub id.
    """
    if path.startswith("embedded:") or Path(path).expanduser().exists():
        return True
    return path.endswith(_ENDINGS) or path.startswith((".", "/", "~")) or path.count("/") != 1


def _embedded(name: str, split: str) -> Path:
    from llmft import assets

    ending = {"train": "train", "validation": "eval"}.get(split, split)
    whole = split == "train" and f"data/{name}.jsonl" in assets.available()
    try:
        return assets.locate(f"data/{name}.jsonl" if whole else f"data/{name}_{ending}.jsonl")
    except ValueError as error:
        raise DataError("E109", str(error)) from error


def _split_files(folder: Path, split: str) -> list[Path]:
    for place in (folder, folder / "data"):
        named = [place / f"{split}{ending}" for ending in _ENDINGS]
        found = [f for f in named if f.is_file()] or sorted(place.glob(f"{split}-*.parquet"))
        if found:
            return found
    raise DataError(
        "E109",
        f"'{folder}' has no file for the split '{split}'",
        fix=f"put {split}.jsonl there, or name the files under data.data_files",
    )


def read_file(path: Path) -> Iterator[Record]:
    """Yield (`file:line`, record) of one local file."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DataError("E107", f"there is no file '{path}'", fix="check the path") from error
    if not stat.S_ISREG(mode):
        raise DataError("E107", f"'{path}' is not a regular file", fix="give a data file")
    plain = path.name.removesuffix(".gz")
    if plain.endswith(".parquet"):
        yield from _parquet(path)
        return
    with _opened(path) as stream:
        if plain.endswith(".csv"):
            yield from _csv(path, stream)
        elif plain.endswith(".json"):
            yield from _json(path, stream)
        elif plain.endswith(".jsonl"):
            yield from _jsonl(path, stream)
        else:
            raise DataError(
                "E107",
                f"'{path}' has an ending that is not known",
                fix=f"use one of {', '.join(_ENDINGS)}",
            )


def _opened(path: Path) -> IO[bytes]:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
    except OSError as error:
        what = f"'{path}' cannot be read: {error.strerror}"
        raise DataError("E107", what, fix="mend its permissions, or copy it") from error
    return cast(IO[bytes], gzip.open(path, "rb")) if packed else path.open("rb")


def _jsonl(path: Path, stream: IO[bytes]) -> Iterator[Record]:
    number = 0
    try:
        while line := stream.readline(_LONGEST_LINE):
            number += 1
            origin = f"{path}:{number}"
            if len(line) >= _LONGEST_LINE:
                raise DataError("E107", f"{origin}: the line is longer than 64 MiB")
            if line.strip():
                yield origin, _object(line, origin)
    except (EOFError, OSError) as error:
        raise DataError("E107", f"{path}:{number + 1}: the file ends in mid-data") from error


def _object(line: bytes, origin: str) -> dict[str, Any]:
    try:
        value = _parsed(line, origin)
    except json.JSONDecodeError as error:
        raise DataError(
            "E107", f"{origin}:{error.colno}: not JSON: {error.msg.lower()}",
            fix=_A_LIST if line.strip() == b"[" else "mend the line",
        ) from error  # fmt: skip
    if not isinstance(value, dict):
        kind = type(value).__name__
        fix = _A_LIST if isinstance(value, list) else "mend the line"
        raise DataError("E107", f"{origin}: a JSON object is wanted, got {kind}", fix=fix)
    if b"\\ud" in line.lower():
        _refuse_half_characters(value, origin)
    return value


def _parsed(data: bytes, origin: str) -> Any:
    """Return JSON's value; the parser's own limits are a fault of the file."""
    text = _text(data, origin)
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (RecursionError, ValueError) as error:  # brackets inside brackets; huge numbers
        what = f"{origin}: not JSON that can be read: {str(error).partition(';')[0].lower()}"
        raise DataError("E107", what, fix="mend or drop the line") from error


def _refuse_half_characters(record: Any, origin: str) -> None:
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # no tokenizer takes it, and no file
        what = f"{origin}: a text holds half of a surrogate pair (an escape such as \\ud800)"
        raise DataError("E107", what, fix="mend or drop the line") from error


def _text(data: bytes, origin: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            "E107", f"{origin}: byte {error.start + 1} is not UTF-8", fix="save the file as UTF-8"
        ) from error


def _whole(path: Path, stream: IO[bytes]) -> bytes:
    try:
        return stream.read()
    except (EOFError, OSError) as error:
        raise DataError("E107", f"{path}: the file ends in mid-data") from error


def _json(path: Path, stream: IO[bytes]) -> Iterator[Record]:
    data = _whole(path, stream)
    try:
        value = _parsed(data, str(path))
    except json.JSONDecodeError as error:
        lines = error.msg == "Extra data" and data.lstrip().startswith(b"{")
        raise DataError(
            "E107", f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg.lower()}",
            fix="if there is an object in each line, name the file .jsonl" if lines else "",
        ) from error  # fmt: skip
    if isinstance(value, dict) and isinstance(value.get("data") or value.get("Data"), list):
        value = value.get("data") or value["Data"]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError("E107", f"{path}: a list of JSON objects is wanted")
    escaped = b"\\ud" in data.lower()
    for number, item in enumerate(value, 1):
        if escaped:
            _refuse_half_characters(item, f"{path}: item {number}")
        yield f"{path}: item {number}", item


def _csv(path: Path, stream: IO[bytes]) -> Iterator[Record]:
    text = _text(_whole(path, stream), str(path))
    csv.field_size_limit(_LONGEST_LINE)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = reader.fieldnames or ()
        if twice := [name for name in names if list(names).count(name) > 1]:
            what = f"{path}:1: two columns are called '{twice[0]}'"
            raise DataError("E107", what, fix="give each its own name")
        for record in reader:
            origin = f"{path}:{reader.line_num}"
            if None in record or None in record.values():
                raise DataError(
                    "E107", f"{origin}: the row has not as many cells as the header has columns"
                )
            yield origin, record
    except csv.Error as error:
        raise DataError("E107", f"{path}:{reader.line_num}: {error}") from error


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(1000):
            for record in batch.to_pylist():
                number += 1
                yield f"{path}: row {number}", record
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError("E107", f"'{path}' is no whole parquet file: {error}") from error
