"""Faults on order: at the n-th file-system event, or at a step of training."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

CRASH = 77  # the exit code of a process that dies in the middle of a write
KINDS = {
    "fsync": "sync", "rename": "rename", "replace": "rename", "mkdir": "new folder",
    "unlink": "remove", "rmdir": "remove",
}  # fmt: skip


class Events:
    """Counts writes, syncs, renames, unlinks and new folders, and fails at one of them.

    kind: 'count' fails nowhere, nor does 'count full', which counts what a full disk refuses;
    'crash' leaves without any clean-up, 'full' has no space left from the n-th event on.
    """

    def __init__(self, kind: str, at: int) -> None:
        self.kind, self.at = kind, at
        self.names: list[str] = []

    def meets(self, name: str, halfway: Callable[[], object] = lambda: None) -> None:
        """Count an event, and fail here if it is the one, after doing it by half."""
        self.names.append(name)
        count = len(self.names)
        failing = count == self.at or (self.kind == "full" and count > self.at)
        if self.kind in ("count", "count full") or not failing:
            return
        halfway()
        if self.kind == "crash":
            os._exit(CRASH)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def install(
    kind: str, at: int = 0, number: int = 0, phase: str = "train", stage: str = "", where: str = ""
) -> Events | None:
    """Make this process meet a fault: file-system events, or a signal.

    The signal comes in a phase (`at`: done), or with the kind 'call' as the function `where`,
    'module:name' or 'module:class.name', is called for the `at`-th time. With the kind 'replaced',
    a file takes the place of the folder `where` after step `at`.
    """
    if kind == "signal":
        _signal_at(number, phase, at, stage)
        return None
    if kind == "call":
        _signal_in(where, at, number)
        return None
    if kind == "bug":
        _break_down(os.environ["HF_TOKEN"])
        return None
    if kind == "seconds":
        import time

        _slow_steps(time, at)
        return None
    if kind == "replaced":
        _replaced_at(where, at)
        return None
    return watch(Events(kind, at))


def watch(events: Events) -> Events:
    """Put an event before each of the calls by which fsio changes the disk."""
    # A disk that is full takes no more data, but lets files go.
    growing = ("fsync", "rename", "replace", "mkdir")
    shrinking = ("unlink", "rmdir")
    for name in growing + shrinking:
        real = getattr(os, name)

        def call(*args: Any, _real: Any = real, _name: str = name, **options: Any) -> Any:
            if _name in growing or events.kind in ("crash", "count"):
                events.meets(KINDS[_name])
            return _real(*args, **options)

        setattr(os, name, call)
    write = os.write

    def half_written(handle: int, data: Any) -> int:
        events.meets("write", lambda: write(handle, bytes(data)[: len(data) // 2]))
        return write(handle, data)

    os.write = half_written
    import safetensors.torch

    save = safetensors.torch.save_file

    def half_saved(tensors: Any, path: Any, *args: Any, **options: Any) -> None:
        save(tensors, path, *args, **options)
        events.meets("write", lambda: os.truncate(path, os.path.getsize(path) // 2))

    safetensors.torch.save_file = half_saved
    return events


def _signal_at(number: int, phase: str, done: int, stage: str) -> None:
    from llmft.engine.trackers import Trackers

    told = Trackers.progress

    def progress(self: Any, progress: Any) -> None:
        told(self, progress)
        here = stage in ("", progress.stage)
        if here and (progress.phase, progress.done) == (phase, done):
            os.kill(os.getpid(), number)

    Trackers.progress = progress


def _signal_in(where: str, at: int, number: int) -> None:
    import importlib

    module, _, path = where.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    real, calls = getattr(owner, name), []

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), number)
        return real(*args, **options)

    setattr(owner, name, counted)


def _replaced_at(folder: str, done: int) -> None:
    """Put a file in a folder's place after a step."""
    from llmft.engine.trackers import Trackers

    told = Trackers.progress

    def progress(self: Any, progress: Any) -> None:
        told(self, progress)
        if (progress.phase, progress.done) == ("train", done):
            os.rename(folder, f"{folder}-away")
            open(folder, "x").close()

    Trackers.progress = progress


def _slow_steps(time: Any, milliseconds: int) -> None:
    """Make each step last, so that a kill from outside can hit it."""
    from llmft.engine.trackers import Trackers

    told = Trackers.progress

    def progress(self: Any, progress: Any) -> None:
        told(self, progress)
        time.sleep(milliseconds / 1e3)

    Trackers.progress = progress


def _break_down(secret: str) -> None:
    """Let a bug of ours show a secret."""
    from llmft.engine.trackers import Trackers

    def progress(self: Any, progress: Any) -> None:
        if progress.phase == "train":
            raise RuntimeError(f"could not log in with {secret}")

    Trackers.progress = progress
