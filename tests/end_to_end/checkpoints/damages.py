"""Twenty-nine ways in which a checkpoint on disk can be damaged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path], object]


def flip(place: float) -> Damage:
    """Turn one bit over, so far into the file."""

    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[int(place * (len(data) - 1))] ^= 1
        path.write_bytes(data)

    return damage


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


_FILE: dict[str, Damage] = {
    "removed": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "one byte short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "first bit": flip(0),
    "middle bit": flip(0.5),
    "a folder": as_folder,
}
_FILES = ("state.safetensors", "state.json", "manifest.json")


def hollow(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def from_the_other(name: str) -> Damage:
    """Take a file from the other checkpoint of two."""

    def damage(folder: Path) -> None:
        (other,) = (path for path in folder.parent.glob("step-*") if path != folder)
        shutil.copy(other / name, folder / name)

    return damage


_WHOLE: dict[str, Damage] = {
    "nothing in it": hollow,
    "a stranger's file": lambda folder: (folder / "extra").write_text("x"),
    "the other's tensors": from_the_other("state.safetensors"),
    "the other's facts": from_the_other("state.json"),
    "the other's manifest": from_the_other("manifest.json"),
}


def _of_file(name: str, damage: Damage) -> Damage:
    return lambda folder: damage(folder / name)


# What is done to a checkpoint's folder, by its name.
DAMAGES: dict[str, Damage] = {
    f"{name} {what}": _of_file(name, damage) for name in _FILES for what, damage in _FILE.items()
} | _WHOLE
