"""The run's end of the process that copies it: never waited for while the run trains."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from subprocess import TimeoutExpired
from typing import Any

from llmft.api.errors import EnvironmentFault
from llmft.hub import remote_copy
from llmft.hub.remote_folder import fault, remote_folder
from llmft.runs import artifacts
from llmft.system import fsio
from llmft.system.processes import Program, start_python
from llmft.system.time_limit import TimeUp, time_limit
from llmft.training.checkpoints import FOLDER as CHECKPOINTS

log = logging.getLogger("llmft")
_ROOT_FILES = (artifacts.RUN, "lock.json", "recipe.yaml", "resolved.yaml", "timeline.json")
_CLAIM_SECONDS = 120.0
_END_SECONDS = 10.0
_LEAST_SECONDS, _LEAST_SPEED = 600.0, 1e6
"""How long the end of a run waits: so many seconds, and those of this many bytes a second."""


def claim(address: str, run_id: str | None) -> None:
    """Raise E228 where a run cannot be copied to an address: asked before anything is trained.

    run_id: of the run; None: of a new one.
    """
    try:
        with time_limit(_CLAIM_SECONDS):
            remote_copy.claim(remote_folder(address), address, run_id)
    except TimeUp as error:
        what = f"'{address}' has not answered within {_CLAIM_SECONDS:.0f} seconds"
        raise EnvironmentFault("E228", what, fix="check the address and the network") from error
    except Exception as error:  # of whichever client the address has
        raise fault(error, address, "be written to") from error


def holds_a_run(address: str) -> bool:
    """Return whether there is a copy at an address. Raises E228 where it cannot be read."""
    try:
        with time_limit(_CLAIM_SECONDS):
            return remote_copy.newest(remote_folder(address)) is not None
    except TimeUp as error:
        what = f"'{address}' has not answered within {_CLAIM_SECONDS:.0f} seconds"
        raise EnvironmentFault("E228", what, fix="check the address and the network") from error
    except Exception as error:  # of whichever client the address has
        raise fault(error, address, "be read") from error


def fetch(address: str, parent: Path, name: str, note: Callable[[str], None]) -> Path:
    """Bring a run back: see `remote_copy.fetch`. Raises E228 where the address cannot be read."""
    try:
        return remote_copy.fetch(remote_folder(address), address, parent, name, note)
    except Exception as error:  # of whichever client the address has
        raise fault(error, address, "be read") from error


class RunCopier:
    """Copies a run's folder to an address, each time something of it is whole.

    What is copied is held by links to its files until it is there; while one copy is made, only the
    newest state waits for the next. note: is told what a person should read.
    """

    def __init__(self, address: str, run: Path, name: str, note: Callable[[str], None]) -> None:
        self.address, self._run, self._name, self._note = address, run, name, note
        self._kept = run / f"{fsio.STAGING}copies"
        self._process: Program | None = None
        self._answers: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._best: dict[str, int | None] = {}
        self._handed: set[Path] = set()  # checkpoints that are in the copy, or on their way there
        self._number = 0
        self._copying: tuple[int, str, int] | None = None  # number, how far the run was, bytes
        self._waiting: tuple[int, str, int] | None = None
        self._failure, self._told = "", ""
        self.last = ""
        """How far the run was in the copy that is there."""

    @property
    def was_given_nothing(self) -> bool:
        """Whether it was asked for no copy yet."""
        return self._number == 0

    def checkpoint(self, stage: str, step: int, best: int | None) -> None:
        """Copy the run as it is after a checkpoint was written; returns at once.

        best: the step of the stage's best evaluation so far.
        """
        self._best[stage] = best
        self.take(f"step {step} of stage '{stage}'")

    def take(self, at: str) -> None:
        """Copy the run as it is; returns at once. at: how far it is, in words."""
        self.heard()
        self._number += 1
        folder = self._kept / str(self._number)
        try:
            size = self._hold(folder)
        except OSError as error:  # the disk is full, or takes no links
            shutil.rmtree(folder, ignore_errors=True)
            self._failed(at, f"'{folder}' cannot be written: {error.strerror}")
            return
        if self._waiting:
            shutil.rmtree(self._kept / str(self._waiting[0]), ignore_errors=True)
        self._waiting = (self._number, at, size)
        self._send()

    def heard(self) -> None:
        """Take in what the process has answered meanwhile; returns at once."""
        with contextlib.suppress(Empty):
            while True:
                self._hear(self._answers.get_nowait())

    def finish(self) -> str:
        """Wait until the last state is copied; return why it is not, or ''.

        Where the wait is broken off, nothing more is copied.
        """
        try:
            self.heard()
            if self._copying or self._waiting:
                self._note(f"waiting for the copy to {self.address}")
            size = sum(one[2] for one in (self._copying, self._waiting) if one)
            until = time.monotonic() + _LEAST_SECONDS + size / _LEAST_SPEED
            while self._copying:
                try:
                    self._hear(self._answers.get(timeout=max(0.0, until - time.monotonic())))
                except Empty:
                    self._failure = "it takes too long"
                    break
        finally:
            self._close()
        return self._failure

    def _close(self) -> None:
        if (process := self._process) is not None:
            if self._copying is None:
                self._write({"end": True})
                with contextlib.suppress(TimeoutExpired):
                    process.wait(_END_SECONDS)
            if process.poll() is None:
                process.kill()
                process.wait()
        shutil.rmtree(self._kept, ignore_errors=True)

    def _send(self) -> None:
        """Hand over what waits, where nothing is being copied."""
        if self._copying or not self._waiting:
            return
        self._copying, self._waiting = self._waiting, None
        number, at, _ = self._copying
        if self._process is None or self._process.poll() is not None:
            self._start()
        self._write({"number": number, "folder": str(self._kept / str(number)), "at": at})

    def _start(self) -> None:
        process = self._process = start_python("llmft.hub.copy_child")
        threading.Thread(target=_read, args=(process, self._answers), daemon=True).start()
        self._write({"address": self.address, "run_id": self._run.name, "name": self._name})

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it has ended: the answers say so
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def _hear(self, message: dict[str, Any]) -> None:
        number = self._copying[0] if self._copying else None
        if "ended" in message:
            if not self._copying or self._process is None or message["ended"] != self._process.pid:
                return
            self._failed(self._copying[1], "the process that copies has ended")
        elif message.get("copied", -1) == number:
            size = message["bytes"] / 1e6
            log.info("%s copied: %.1f MB in %.1f s", message["at"], size, message["seconds"])
            if self._failure:
                self._note(f"{message['at']} is copied to {self.address} again")
            self.last = message["at"]
            self._failure = self._told = ""
        elif message.get("failed", -1) == number:
            self._failed(message["at"], message["why"])
        else:
            return
        self._copying = None
        self._send()

    def _failed(self, at: str, why: str) -> None:
        self._failure = why
        log.warning("%s was not copied: %s", at, why)
        if why != self._told:  # each reason once
            self._note(f"{at} is not copied: {why}; the run goes on")
        self._told = why

    def _hold(self, folder: Path) -> int:
        """Keep the run's files in a folder as they are now: what never changes by links.

        Return how many bytes they have.
        """
        folder.mkdir(parents=True)
        size = 0
        for path in self._files():
            target = folder / path.relative_to(self._run)
            target.parent.mkdir(parents=True, exist_ok=True)
            size += path.stat().st_size
            if not (path.parent / fsio.MANIFEST).is_file():
                shutil.copyfile(path, target)
                continue
            try:
                os.link(path, target)
            except OSError:  # a file system without links
                shutil.copyfile(path, target)
        return size

    def _files(self) -> Iterator[Path]:
        """Yield the files that a run needs to go on, and what its finished stages have made."""
        for name in _ROOT_FILES:
            if (self._run / name).is_file():
                yield self._run / name
        for stage in sorted((self._run / "stages").glob("*")):
            chosen = self._chosen(stage)
            for path in sorted(stage.rglob("*")):
                inside = path.relative_to(stage).parts
                if path.is_symlink() or not path.is_file() or path.suffix == ".html":
                    continue
                if any(part.startswith(fsio.STAGING) for part in inside):
                    continue
                if inside[0] != CHECKPOINTS or stage / CHECKPOINTS / inside[1] in chosen:
                    yield path

    def _chosen(self, stage: Path) -> set[Path]:
        """Return a stage's checkpoints that are copied: the newest, the best, and those before."""
        there = {p for p in (stage / CHECKPOINTS).glob("step-*") if p.name[5:].isdecimal()}
        best = self._best.get(stage.name)
        chosen = {p for p in there if p in self._handed or p.name == f"step-{best}"}
        if there:
            chosen.add(max(there, key=lambda path: int(path.name[5:])))
        self._handed = {p for p in self._handed if p.parent.parent != stage} | chosen
        return chosen


def _read(process: Program, answers: SimpleQueue[dict[str, Any]]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        answers.put(json.loads(line))
    process.wait()
    answers.put({"ended": process.pid})
