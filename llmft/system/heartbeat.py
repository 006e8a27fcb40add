"""Which process of several has stalled: each shows the others that it lives, and where it is.

A thread of each process writes to the launcher's store, every few seconds, how often the process
has come to meet the others, and the stack of its main thread. What a process that was stopped
wrote last is there for the others to read.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from llmft.api.errors import EnvironmentFault, StageError
from llmft.system.launcher import Launch

log = logging.getLogger("llmft")

LIMIT = "LLMFT_STALL_SECONDS"
_DEFAULT_SECONDS = 1800.0  # torch's own for gloo, and TrainingArguments' ddp_timeout
_FRAMES = 6
_KEY = "llmft/heartbeat/"


def limit(environment: Mapping[str, str] = os.environ) -> float:
    """Return the seconds after which a run ends because one of its processes has stalled.

    Raises EnvironmentFault where the variable is set to something else than a number of them.
    """
    text = environment.get(LIMIT, "")
    try:
        seconds = float(text) if text else _DEFAULT_SECONDS
    except ValueError:
        seconds = 0.0
    if not 5 <= seconds <= 604_800:
        raise EnvironmentFault(
            "E210", f"{LIMIT}={text} is not 5 to 604800 seconds", fix=f"unset it, or set {LIMIT}"
        )
    return seconds


def stalled(what: str) -> StageError:
    """Return the error that ends a run, of one of whose processes nothing is heard."""
    fix = "see why that process or its machine hangs; then continue with --resume"
    return StageError("E306", what, fix=fix)


@dataclass
class _Seen:
    """What is known of another process: its last beat, and for how many beats of ours it is so."""

    beat: int = 0
    met: int = 0
    stack: str = "before its first sign of life"
    silent: int = 0
    missing: int = 0


@dataclass
class Heartbeat:
    """The signs of life of one process, and what it makes of the others'.

    store: torch.distributed's; a connection of its own. Time is counted in own beats, not by the
    clock: where a whole job is suspended for hours, nobody has missed any.
    """

    store: Any
    here: Launch
    seconds: float
    met: int = 0
    waits: bool = False
    patient: bool = False
    beat: int = 0
    lost: str = ""
    _seen: dict[int, _Seen] = field(default_factory=dict)
    _said: dict[int, dict[str, Any]] = field(default_factory=dict)
    _ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        others = set(range(self.here.count)) - {self.here.rank}
        self._seen = {rank: _Seen() for rank in sorted(others)}
        self.every = min(5.0, self.seconds / 12)
        self._main = threading.main_thread().ident

    def start(self) -> None:
        """Show and look for signs of life from now on, in two threads.

        The store may be in the process that hangs: whoever asks it then hangs too.
        """
        for do in (self.exchange, self.judge):
            threading.Thread(target=self._again, args=(do,), name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Leave the store alone from now on."""
        self._ended.set()

    @contextmanager
    def meeting(self, *, patient: bool = False) -> Iterator[None]:
        """Note that this process waits for the others, for the block.

        patient: for work that the first one does alone, however long it takes.
        Raises StageError where one of them is lost already.
        """
        if self.lost:
            raise stalled(self.lost)
        self.met += 1
        self.waits, self.patient = True, patient
        try:
            yield
        finally:
            self.waits = False

    def missing(self) -> str:
        """Return which process is waited for, and where it is; '' where that is not known."""
        late = [(s.missing + s.silent, rank) for rank, s in self._seen.items() if s.met < self.met]
        return self._described(max(late)[1]) if late else ""

    def exchange(self) -> None:
        """Show one sign of life, and read the others'."""
        self.beat += 1
        mine = {"beat": self.beat, "met": self.met, "stack": self._stack()}
        self.store.set(f"{_KEY}{self.here.rank}", json.dumps(mine))
        for rank in self._seen:
            if self.store.check([key := f"{_KEY}{rank}"]):
                self._said[rank] = json.loads(self.store.get(key))

    def judge(self) -> None:
        """Count for how long the others have said nothing new, and act where it is too long."""
        for rank, seen in self._seen.items():
            self._look(rank, seen, self._said.get(rank, {}))

    def _again(self, do: Callable[[], None]) -> None:
        while not self._ended.wait(self.every):
            try:
                do()
            except RuntimeError as error:  # the store is gone: whoever had it ends the others
                log.info("no more signs of life: %s", error)
                self.stop()

    def _look(self, rank: int, seen: _Seen, said: Mapping[str, Any]) -> None:
        if said.get("beat", 0) != seen.beat:
            seen.beat, seen.met, seen.stack = said["beat"], said["met"], said["stack"]
            seen.silent = 0
        else:
            seen.silent += 1
        waited_for = self.waits and not self.patient and seen.met < self.met
        seen.missing = seen.missing + 1 if waited_for else 0
        soon, late = (round(s / self.every) for s in (min(60.0, self.seconds / 3), self.seconds))
        tells = self.here.rank == 0 or (self.here.rank == 1 and rank == 0)
        if tells and max(seen.silent, seen.missing) == soon:
            self._tell(self._described(rank))
        if seen.silent >= late:
            self.lost = self.lost or self._described(rank)
            if self.here.rank and self.waits and self.patient:  # nothing else would wake it
                self._leave()

    def _described(self, rank: int) -> str:
        seen = self._seen[rank]
        if seen.silent > 1:
            what = f"shows no sign of life for {seen.silent * self.every:.0f} s; it was last at"
        else:
            what = f"keeps the others waiting for {seen.missing * self.every:.0f} s; it is at"
        return f"rank {rank} {what} {seen.stack}"

    def _stack(self) -> str:
        """Return where the main thread is, innermost first."""
        frame = sys._current_frames().get(self._main or 0)
        if frame is None:
            return "its end"
        frames = traceback.extract_stack(frame)[-_FRAMES:]
        places = [f"{'/'.join(f.filename.split('/')[-2:])}:{f.lineno} ({f.name})" for f in frames]
        return " < ".join(reversed(places))

    def _tell(self, text: str) -> None:
        log.warning(text)
        if sys.__stderr__ is not None:
            ends = f"the run ends after {self.seconds:.0f} s of it ({LIMIT})"
            print(f"note: {text}; {ends}", file=sys.__stderr__, flush=True)

    def _leave(self) -> NoReturn:
        error = stalled(self.lost)
        log.error("%s", error)
        if sys.__stderr__ is not None:
            print(f"{self.here}: {error}", file=sys.__stderr__, flush=True)
        os._exit(error.exit_code)
