"""Every write to disk. A file or a folder is either there whole, or not there at all.

Staged beside its target, synced, renamed, and the folder synced: a kill at any moment leaves the
old state or the new one. State is tensors (safetensors) and JSON; no pickle is written or read.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft.api.errors import CheckpointError, EnvironmentFault, RecipeError
from llmft.system.plain_files import open_own, read_text

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"
STAGING = ".staging-"
# EFBIG: a limit on the size of files, such as a shell's `ulimit -f`.
_LARGEST_JSON = 2**28
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG}


@contextmanager
def disk_errors(path: Path, needed: int = 0) -> Iterator[None]:
    """Turn the file system's refusals into one error that names the path and the free space.

    needed: how many bytes are to be written, where that is known.
    """
    try:
        yield
    except Exception as error:
        number = _errno(error)
        if number in _DISK_ERRORS:
            raise EnvironmentFault(
                "E202",
                f"cannot write '{path}': {os.strerror(number).lower()}"
                f" ({f'{needed:,} bytes needed, ' if needed else ''}{_free(path)})",
                fix=f"{_more_room(number)}, or use another --output-dir; nothing written was lost",
            ) from error
        if number in (errno.EACCES, errno.EPERM):
            raise EnvironmentFault(
                "E203", f"cannot write '{path}': permission denied", fix="use another --output-dir"
            ) from error
        if number == errno.ENOTDIR:
            raise EnvironmentFault(
                "E203",
                f"cannot write '{path}': a part of the path is a file",
                fix="use another folder",
            ) from error
        if number == errno.ENOENT and not path.parent.exists():  # such as in /proc
            raise EnvironmentFault(
                "E203",
                f"cannot write '{path}': no folder can be made there",
                fix="use another folder",
            ) from error
        if path.is_dir() and number in (errno.EISDIR, errno.EBUSY):
            raise EnvironmentFault(
                "E203", f"cannot write '{path}': it is a folder", fix="name a file"
            ) from error
        raise


def _more_room(number: int) -> str:
    if number == errno.EFBIG:
        return "raise the limit on the size of files (ulimit -f)"
    return "free some space"


def _errno(error: Exception) -> int:
    """Return the file system's number of an error, or 0; safetensors tells it in words."""
    if isinstance(error, OSError):
        return error.errno or 0
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told and type(error).__name__ == "SafetensorError" else 0


def _free(path: Path) -> str:
    """Return the free space of the nearest existing parent, in words."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return f"{shutil.disk_usage(path).free / 1e6:.0f} MB free"
    except OSError:
        return "free space unknown"


def make_private_folder(path: Path) -> None:
    """Make a folder that must not be there yet, readable by its owner alone."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole: staged beside the target, synced, renamed."""
    with disk_errors(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, staged = tempfile.mkstemp(dir=path.parent, prefix=f"{STAGING}{path.name}-")
        try:
            try:
                _write_all(handle, data)
                os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(staged, path)
        except BaseException:
            Path(staged).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def _write_all(handle: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(handle, left) :]


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write plain data as readable JSON; NaN and infinity are refused with ValueError."""
    write_text(path, _as_json(value))


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_new_jsonl(path: Path, values: Sequence[Mapping[str, Any]]) -> None:
    """Write plain data, one JSON object a line, into a file that must not be there yet."""
    refuse_overwriting(path)
    write_jsonl(path, values)


def refuse_overwriting(path: Path) -> None:
    """Raise RecipeError (E090) where something has a name already under which we are to write."""
    if path.is_dir():
        what = f"cannot write '{path}': it is a folder"
        raise EnvironmentFault("E203", what, fix="name a file")
    if os.path.lexists(path):
        what = f"'{path}' is there already, and is not overwritten"
        raise RecipeError("E090", what, fix="give another name, or move it away")


def open_to_append(path: Path, kind: type[io.TextIOWrapper] = io.TextIOWrapper) -> io.TextIOWrapper:
    """Return a text file of a run to add whole lines to; what a kill left of one is ended first.

    kind: how it is written; the file itself is always UTF-8.

    Raises TrustError (E605) where it is a link, or no plain file.
    """
    handle = open_own(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    size = os.fstat(handle).st_size
    torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
    # Line buffering: a run that is killed loses at most the line it was writing.
    raw = os.fdopen(handle, "ab")
    file = kind(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)
    if torn:
        file.write("\n")
    return file


def write_jsonl(path: Path, values: Sequence[Mapping[str, Any]]) -> None:
    """Write plain data, one JSON object a line."""
    write_text(path, "".join(json.dumps(v, ensure_ascii=False) + "\n" for v in values))


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, which may be missing; return when it is on disk, newline and all.

    Where that fails, the file is cut back to what it was. Raises TrustError (E605) at a link.
    """
    with disk_errors(path):
        new = not path.exists()
        handle = open_own(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            size = os.fstat(handle).st_size
            try:
                _write_all(handle, line.encode() + b"\n")
                os.fsync(handle)
            except BaseException:
                os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)
        if new:
            sync_folder(path.parent)


def cut_half_line(path: Path) -> None:
    """Cut off what stands after the last newline: the rest of a write that a kill ended."""
    with disk_errors(path):
        handle = open_own(path, os.O_RDWR)
        with os.fdopen(handle, "rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
            file.flush()
            os.fsync(handle)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as safetensors, in place: for a file inside a folder that is staged."""
    from safetensors.torch import save_file

    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    with disk_errors(path, size):
        save_file(dict(tensors), path)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(path: Path) -> None:
    """Make renames inside a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def staged_folder(target: Path, run_id: str) -> Iterator[Path]:
    """Yield an empty folder that becomes `target`, with a manifest, if the block succeeds.

    target: must not be there yet.
    """
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{STAGING}{target.name}-"))
        try:
            yield staged
            files = sorted(p for p in staged.rglob("*") if p.is_file())
            hashes = {str(p.relative_to(staged)): sha256(p) for p in files}
            write_json(staged / MANIFEST, {"run_id": run_id, "sha256": hashes})
            for path in files:
                _sync_file(path)
            for folder in {p.parent for p in files} | {staged}:
                sync_folder(folder)
            os.rename(staged, target)
            sync_folder(target.parent)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_json(path: Path, fix: str) -> dict[str, Any]:
    """Return the JSON object in a file that a run wrote.

    Raises CheckpointError, with a suggested fix, where it is missing or damaged.
    """
    try:
        found = json.loads(read_text(path, _LARGEST_JSON))
        json.dumps(found, allow_nan=False)  # a number such as 1e999, which none of ours is
    except FileNotFoundError as error:
        raise CheckpointError("E401", f"'{path}' is missing", fix=fix) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError("E401", f"'{path}' is damaged", fix=fix) from error
    if not isinstance(found, dict) or not _has_shape(found, _SHAPES.get(path.name, {})):
        raise CheckpointError("E401", f"'{path}' is damaged", fix=fix)
    return found


def _has_shape(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    for key, kind in wanted.items():
        value = found.get(key)
        if not isinstance(value, dict if isinstance(kind, dict) else kind):
            return False
        if isinstance(kind, dict) and not _has_shape(value, kind):
            return False
    return True


def read_jsonl(path: Path, fix: str) -> list[dict[str, Any]]:
    """Return the JSON objects in a file that a run wrote, one in a line.

    Raises CheckpointError, with a suggested fix, where it is damaged; a torn last line is left out.
    """
    found: list[dict[str, Any]] = []
    try:
        lines = read_text(path, _LARGEST_JSON).split("\n")  # a text in one may hold U+2028
        for line in lines[:-1]:
            found.append(dict(json.loads(line)))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError("E401", f"'{path}' is damaged", fix=fix) from error
    return found


# What every reader of a file takes for granted.
_SHAPES: dict[str, dict[str, Any]] = {
    "run.json": {"stages": list},
    "lock.json": {"model": {"path": str, "sha256": dict}},
    "result.json": {"produces": str},
}


@contextmanager
def as_a_run_wrote(folder: Path, fix: str) -> Iterator[None]:
    """Turn what goes wrong with files of another shape than a run writes into CheckpointError.

    A folder from somebody else may hold anything in them; what the block reads is theirs.
    """
    try:
        yield
    except (*_OTHER_SHAPE, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EFBIG, errno.EINVAL):
            raise  # the machine's, not the folder's: see plain_files.read_bytes
        what = f"'{folder}' holds a file that is not as a run writes it"
        told = f"{type(error).__name__} {str(error)[:80]}"
        raise CheckpointError("E401", f"{what} ({told})", fix=fix) from error


_OTHER_SHAPE = (
    KeyError, TypeError, AttributeError, IndexError, ValueError, RecursionError, ArithmeticError,
)  # fmt: skip


def verify_folder(folder: Path, fix: str = "use an earlier checkpoint") -> str:
    """Return the run id in a staged folder's manifest, after checking every file against it.

    Raises CheckpointError, with a suggested fix, where the manifest or a file is missing, a hash
    differs, or there is a file that the manifest does not name.
    """
    try:
        text = read_text(folder / MANIFEST, 2**26)
        manifest = json.loads(text)
        run_id, hashes = str(manifest["run_id"]), dict(manifest["sha256"])
        if _as_json(manifest) != text:  # nothing vouches for the manifest but its own form
            raise ValueError("altered")
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in hashes):
            raise ValueError("names files that are not its own")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"'{folder}' has no readable {MANIFEST}"
        raise CheckpointError("E401", what, fix=fix) from error
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}
    if strange := sorted(there - {MANIFEST, *hashes}):
        what = f"'{folder / strange[0]}' is not a file that was written with the others"
        raise CheckpointError("E401", what, fix="take it away")
    for name, digest in hashes.items():
        path = folder / name
        if not path.is_file() or _is_endless(path) or sha256(path) != digest:
            state = "is damaged" if path.is_file() else "is missing"
            raise CheckpointError("E401", f"'{path}' {state}", fix=fix)
    return run_id


def _is_endless(path: Path) -> bool:
    """Return whether a file is longer than it can be, and would take for ever to be hashed."""
    if path.suffix == ".safetensors":
        return is_of_another_size(path)
    return path.suffix != ".gguf" and path.stat().st_size > 2**28


def is_of_another_size(path: Path) -> bool:
    """Return whether a safetensors file has another size than its header says, or no header."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size, 2**27):
            return True
        try:
            header = json.loads(file.read(length))
            ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
            return bool(size != 8 + length + max(ends, default=0))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            return True


def remove_folder(path: Path) -> None:
    """Take a folder away; a kill leaves it whole, or remains that `sweep_staging` takes away."""
    with disk_errors(path):
        doomed = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{STAGING}{path.name}-"))
        try:
            os.rename(path, doomed)
        finally:
            shutil.rmtree(doomed, ignore_errors=True)


def sweep_staging(folder: Path) -> None:
    """Remove what an earlier, killed process left half-written directly inside a folder.

    folder: one that a run made for itself, and that no other process writes in now.
    """
    for path in folder.glob(f"{STAGING}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
