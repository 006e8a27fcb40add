"""Raw records from local files and from the hub, each with the place it came from."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal

from llmft.api.errors import DataError
from llmft.data.data_files import ENDINGS, files_of, names_files
from llmft.data.hub_tables import hub_records
from llmft.data.opening import CUT, opened
from llmft.data.splits import records_of_parts
from llmft.data.strict_json import KeyTwiceError, strict_json
from llmft.system.memory_bound import memory_bound

Record = tuple[str, Mapping[str, Any]]
_MB = 2**20
_PARSED = 8  # times its bytes a text takes as Python's objects, at most
_A_LIST = "if the file is one list, name the file .json"


@dataclass(frozen=True)
class ReadLimits:
    """What a file may unpack to, in MB: one record, and a whole file of a format that needs it all.

    A file of kilobytes can hold gigabytes, and the memory of a training run is not there for them.
    """

    row_mb: int = 64
    file_mb: int = 512


SampleBy = Literal["line", "paragraph", "document"]
"""What is one text of a .txt file: `datasets`' words."""


class Unreadable(Mapping[str, Any]):
    """A record that could not be read, in a file that goes on: looking at it raises why."""

    def __init__(self, error: DataError) -> None:
        self.error = error

    def __getitem__(self, key: str) -> Any:
        raise self.error

    def __iter__(self) -> Iterator[str]:
        raise self.error

    def __len__(self) -> int:
        raise self.error


USUAL = ReadLimits()


def read_records(
    path: str | None,
    split: str,
    *,
    data_files: Mapping[str, str] | None = None,
    subset: str | None = None,
    revision: str | None = None,
    limits: ReadLimits = USUAL,
    sample_by: SampleBy = "line",
    streaming: bool = False,
    keep_unreadable: bool = False,
) -> Iterator[Record]:
    """Yield (origin, record) of a split: of files, a folder of <split> files, or a hub data set.

    split: or parts of splits, as datasets writes them: train[:20%]+validation. path: a .jsonl,
        .json, .csv, .parquet or .txt file (.gz and .zst too) or a pattern of files, which is the
        whole 'train' split; a folder; 'embedded:<name>'; or a hub id. data_files: a file or
        pattern for each split, instead of path.
    limits: of local files. sample_by: what is one text of a .txt file. streaming: the hub's files
        are read over the network, and kept nowhere; local files always are read in pieces.
    keep_unreadable: a record that is broken, in a local file that goes on, is yielded as
        `Unreadable`, so that the caller can count it; else it raises.
    Raises DataError (E107, E109) and EnvironmentFault (E201).
    """
    if path is not None and not data_files and not names_files(path):
        if streaming:
            name: str = path
            yield from records_of_parts(
                split, lambda one: hub_records(name, subset, one, revision, streaming=True)
            )
        else:
            yield from hub_records(path, subset, split, revision)
        return

    def local(one: str) -> Iterator[Record]:
        for file in files_of(path, one, data_files):
            yield from _read_file(file, limits, sample_by)

    found = records_of_parts(split, local)
    yield from found if keep_unreadable else _readable(found)


def read_file(
    path: Path, limits: ReadLimits = USUAL, sample_by: SampleBy = "line"
) -> Iterator[Record]:
    """Yield (`file:line`, record) of one local file, read in pieces.

    sample_by: what is one record of a .txt file, which has one column, `text`.

    Raises DataError (E107) where a record is broken, and where one, or a file that is read whole,
    unpacks to more than the limits.
    """
    return _readable(_read_file(path, limits, sample_by))


def _readable(records: Iterable[Record]) -> Iterator[Record]:
    for origin, record in records:
        if isinstance(record, Unreadable):
            raise record.error
        yield origin, record


def _read_file(path: Path, limits: ReadLimits, sample_by: SampleBy) -> Iterator[Record]:
    """Yield the records of a file, also those that are broken."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DataError("E107", f"there is no file '{path}'", fix="check the path") from error
    if not stat.S_ISREG(mode):
        raise DataError("E107", f"'{path}' is not a regular file", fix="give a data file")
    plain = path.name.removesuffix(".gz").removesuffix(".zst")
    if plain.endswith(".parquet"):
        yield from _parquet(path, limits)
        return
    with opened(path) as stream:
        if plain.endswith(".csv"):
            yield from _csv(path, stream, limits)
        elif plain.endswith(".json"):
            yield from _json(path, stream, limits)
        elif plain.endswith(".jsonl"):
            yield from _jsonl(path, stream, limits)
        elif plain.endswith(".txt"):
            yield from _texts(path, stream, limits, sample_by)
        else:
            raise DataError(
                "E107",
                f"'{path}' has an unknown file extension",
                fix=f"use one of {', '.join(ENDINGS)}",
            )


def _jsonl(path: Path, stream: IO[bytes], limits: ReadLimits) -> Iterator[Record]:
    number, most, blank = 0, limits.row_mb * _MB, 0
    try:
        while line := stream.readline(most + 1):
            number += 1
            origin = f"{path}:{number}"
            filled = line.strip()
            blank = 0 if filled else blank + len(line)  # a packed file of them goes on for hours
            if len(line) > most or blank > most:
                raise _too_large(origin, limits)
            if filled:
                yield origin, _record(line, origin)
    except CUT as error:
        raise DataError(
            "E107", f"{path}:{number + 1}: the file ends in the middle of the data"
        ) from error


def _texts(
    path: Path, stream: IO[bytes], limits: ReadLimits, sample_by: SampleBy
) -> Iterator[Record]:
    """Yield the texts of a file: its lines, its paragraphs (between empty lines), or all of it.

    Lines and paragraphs have no line break at their end; an empty one is no text.
    """
    number, most, size = 0, limits.row_mb * _MB, 0
    found = bytearray()  # a list of short lines takes 20 times their bytes
    begin, blank = 1, 0

    def text() -> Iterator[Record]:
        whole = bytes(found)
        origin = str(path) if sample_by == "document" else f"{path}:{begin}"
        if whole.strip():
            kept = whole if sample_by == "document" else whole.rstrip(b"\r\n")
            yield origin, _text_record(kept, origin)
        found.clear()

    try:
        while line := stream.readline(most + 1):
            number += 1
            if sample_by == "line" or (sample_by == "paragraph" and not line.strip()):
                yield from text()
                size = 0
            if not found:
                begin = number
            blank = 0 if line.strip() else blank + len(line)
            size += len(line)
            if max(size, blank) > most:
                raise _text_too_large(f"{path}:{begin}", limits, sample_by)
            if found or line.strip() or sample_by == "document":
                found += line
        yield from text()
    except CUT as error:
        raise DataError(
            "E107", f"{path}:{number + 1}: the file ends in the middle of the data"
        ) from error


def _text_record(kept: bytes, origin: str) -> Mapping[str, Any]:
    try:
        return {"text": _text(kept, origin)}
    except DataError as error:
        return Unreadable(error)


def _text_too_large(origin: str, limits: ReadLimits, sample_by: SampleBy) -> DataError:
    smaller = {"document": "paragraph", "paragraph": "line"}.get(sample_by)
    return DataError(
        "E107",
        f"{origin}: the {sample_by} is larger than {limits.row_mb} MB",
        fix=(f"write data.sample_by: {smaller}, or " if smaller else "")
        + "raise data.max_row_mb if it is meant",
    )


def _too_large(origin: str, limits: ReadLimits, cell: str = "") -> DataError:
    what = f"the cell '{cell}'" if cell else "the record"
    return DataError(
        "E107",
        f"{origin}: {what} is larger than {limits.row_mb} MB",
        fix="drop it, or raise data.max_row_mb if it is meant",
    )


def _record(line: bytes, origin: str) -> Mapping[str, Any]:
    try:
        return _object(line, origin)
    except DataError as error:
        return Unreadable(error)


def _object(line: bytes, origin: str) -> dict[str, Any]:
    try:
        value = _parsed(line, origin)
    except json.JSONDecodeError as error:
        raise DataError(
            "E107", f"{origin}:{error.colno}: not JSON: {error.msg.lower()}",
            fix=_A_LIST if line.strip() == b"[" else "correct the line",
        ) from error  # fmt: skip
    if not isinstance(value, dict):
        kind = type(value).__name__
        fix = _A_LIST if isinstance(value, list) else "correct the line"
        raise DataError("E107", f"{origin}: a JSON object is wanted, got {kind}", fix=fix)
    if b"\\ud" in line.lower():
        _refuse_half_characters(value, origin)
    return value


def _parsed(data: bytes, origin: str) -> Any:
    """Return JSON's value; the parser's own limits are a fault of the file."""
    text = _text(data, origin)
    try:
        return strict_json(text)
    except json.JSONDecodeError:
        raise
    except KeyTwiceError as error:
        raise DataError("E107", f"{origin}: {error}", fix="keep the one that is meant") from error
    except (RecursionError, ValueError) as error:  # brackets inside brackets; huge numbers
        what = f"{origin}: not readable JSON: {str(error).partition(';')[0].lower()}"
        raise DataError("E107", what, fix="correct or delete the line") from error


def _refuse_half_characters(record: Any, origin: str) -> None:
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # no tokenizer takes it, and no file
        what = f"{origin}: a text holds half of a surrogate pair (an escape such as \\ud800)"
        raise DataError("E107", what, fix="correct or delete the line") from error


def _text(data: bytes, origin: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            "E107", f"{origin}: byte {error.start + 1} is not UTF-8", fix="save the file as UTF-8"
        ) from error


def _whole(path: Path, stream: IO[bytes], limits: ReadLimits) -> bytes:
    most = limits.file_mb * _MB
    pieces, size = [], 0
    try:
        while piece := stream.read(_MB):  # no more than that is unpacked ahead
            pieces.append(piece)
            size += len(piece)
            if size > most:
                raise _file_too_large(path, limits)
    except CUT as error:
        raise DataError("E107", f"{path}: the file ends in the middle of the data") from error
    return b"".join(pieces)


def _file_too_large(path: Path, limits: ReadLimits) -> DataError:
    return DataError(
        "E107",
        f"{path}: the file unpacks to more than {limits.file_mb} MB, and is read whole",
        fix="write an object in each line and name it .jsonl, or raise data.max_file_mb",
    )


def _json(path: Path, stream: IO[bytes], limits: ReadLimits) -> Iterator[Record]:
    data = _whole(path, stream, limits)
    try:
        with memory_bound(_PARSED * limits.file_mb):
            value = _parsed(data, str(path))
    except MemoryError as error:
        raise _file_too_large(path, limits) from error
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
        origin = f"{path}: item {number}"
        _refuse_large(item, origin, limits)
        try:
            if escaped:
                _refuse_half_characters(item, origin)
        except DataError as error:
            yield origin, Unreadable(error)
        else:
            yield origin, item


def _refuse_large(record: Mapping[str, Any], origin: str, limits: ReadLimits) -> None:
    size = sum(len(value) for value in record.values() if isinstance(value, str | bytes))
    if size > limits.row_mb * _MB:
        cell = max(record, key=lambda name: len(record[name]) if record[name] else 0)
        raise _too_large(origin, limits, str(cell))


class _Lines:
    """The lines of a CSV file; a record that goes on over many is bounded too."""

    def __init__(self, path: Path, stream: IO[bytes], limits: ReadLimits) -> None:
        self._text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        self._path, self._limits, self._number, self._size = path, limits, 0, 0

    def __iter__(self) -> Iterator[str]:
        most = self._limits.row_mb * _MB
        while line := self._text.readline(most + 1):
            self._number += 1
            self._size += len(line)
            if self._size > most:
                raise _too_large(f"{self._path}:{self._number}", self._limits)
            yield line

    def record_ends(self) -> None:
        """Count from here again."""
        self._size = 0


def _csv(path: Path, stream: IO[bytes], limits: ReadLimits) -> Iterator[Record]:
    csv.field_size_limit(limits.row_mb * _MB)
    lines = _Lines(path, stream, limits)
    number = 1
    try:
        header = next(iter(lines), "")
        part = _delimiter(header)
        reader = csv.DictReader(chain([header], lines), strict=True, delimiter=part)
        names = reader.fieldnames or ()
        if twice := [name for name in names if list(names).count(name) > 1]:
            what = f"{path}:1: two columns are called '{twice[0]}'"
            raise DataError("E107", what, fix="give each its own name")
        for record in reader:
            lines.record_ends()
            number = reader.line_num
            origin = f"{path}:{number}"
            if None in record or None in record.values():
                error = DataError(
                    "E107",
                    f"{origin}: the row and the header have different numbers of cells, where"
                    f" {_DELIMITERS[part]} part them",
                    fix="put a cell that holds such a sign in double quotes",
                )
                yield origin, Unreadable(error)
            else:
                yield origin, record
    except csv.Error as fault:
        raise DataError("E107", f"{path}:{number + 1}: {fault}") from fault
    except UnicodeDecodeError as fault:
        what = f"{path}: byte {_first_bad_byte(path)} is not UTF-8"
        raise DataError("E107", what, fix="save the file as UTF-8") from fault
    except CUT as fault:
        raise DataError("E107", f"{path}: the file ends in the middle of the data") from fault


_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def _delimiter(header: str) -> str:
    """Return what parts the cells: commas, or what a header without any has in their place.

    Spreadsheets write semicolons where the comma is the decimal sign.
    """
    unquoted = re.sub(r'"[^"]*"', "", header)
    return next((sign for sign in _DELIMITERS if sign in unquoted), ",")


def _first_bad_byte(path: Path) -> int:
    """Return the number, from 1, of the first byte of a file that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0
    with opened(path) as stream, suppress(*CUT):  # a file may be cut behind that byte, too
        while piece := stream.read(_MB):
            held = len(decoder.getstate()[0])
            try:
                decoder.decode(piece)
            except UnicodeDecodeError as error:
                return done - held + error.start + 1
            done += len(piece)
    return done + 1


def _parquet(path: Path, limits: ReadLimits) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with memory_bound(_PARSED * limits.row_mb):
            file = pyarrow.parquet.ParquetFile(path)
            batches = file.iter_batches(_batch_rows(file, limits), use_threads=False)
        while True:
            # A page of kilobytes may unpack to gigabytes before there is a row to look at.
            with memory_bound(_PARSED * limits.row_mb):
                batch = next(batches, None)
                if batch is None:
                    return
                _refuse_large_row(batch, path, number, limits)
                records = batch.to_pylist()
            for record in records:
                number += 1
                yield f"{path}: row {number}", record
    except MemoryError as error:
        raise _too_large(f"{path}: row {number + 1}", limits) from error
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError("E107", f"'{path}' is not a complete parquet file: {error}") from error


def _batch_rows(file: Any, limits: ReadLimits) -> int:
    """Return how many rows are unpacked together: few where one of them could be large."""
    groups = (file.metadata.row_group(n) for n in range(file.metadata.num_row_groups))
    largest = max((group.total_byte_size for group in groups), default=1)
    return min(max(limits.row_mb * _MB // max(largest, 1), 8), 1000)


def _refuse_large_row(batch: Any, path: Path, before: int, limits: ReadLimits) -> None:
    most = limits.row_mb * _MB
    if batch.nbytes <= most:
        return
    for at in range(batch.num_rows):
        row = batch.slice(at, 1)
        if row.nbytes > most:
            sizes = {name: row.column(name).nbytes for name in row.schema.names}
            cell = max(sizes, key=lambda name: sizes[name])
            raise _too_large(f"{path}: row {before + at + 1}", limits, cell)
