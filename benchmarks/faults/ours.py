"""Crashes, full disks and kills in runs of llmft: what is left after each, to the bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canaries import Canaries
from cells import Cell, Ground
from faults import CRASH
from harness import Ended, Server, run_in_child, state_of

FAULTS = ("crash", "full", "place")
WANTED = {"crash": CRASH, "full": 4, "place": -signal.SIGKILL}
"""The exit code of a process that met a fault."""


@dataclass(frozen=True)
class Outcome:
    """One fault and what came of it.

    result: 'exact' where the run ended in the very state of the one that nothing stopped, else what
    went wrong. event: what the process was about to do. step: the last one that was done.
    """

    method: str
    fault: str
    event: str
    result: str
    step: int = 0


class Bench:
    """Runs the recipes of one cell in a folder of its own, by one server of forked processes."""

    def __init__(
        self, server: Server, ground: Ground, cell: Cell, canaries: Canaries, steps: int = 4
    ) -> None:
        self.server, self.cell, self.canaries = server, cell, canaries
        self.recipe = ground.recipe(cell, steps)
        self.home = Path(tempfile.mkdtemp(dir=ground.home))
        self.whole = self._go("whole", fault={"kind": "count"})
        assert self.whole.code == 0, self.whole.text
        self.state = state_of(self.whole.folder)

    def _go(self, place: str, **options: Any) -> Ended:
        options["processes"] = self.cell.processes
        return run_in_child(self.server, self.home, self.recipe, place, **options)

    def events(self, fault: str) -> tuple[str, ...]:
        """Return the kinds of all events at which a fault can strike, in their order."""
        if fault == "crash":
            return self.whole.events
        if fault == "place" and not self.cell.places:
            return ()
        kind = "count full" if fault == "full" else "places"
        counted = self._go("counted", fault={"kind": kind, **self._where(kind)})
        shutil.rmtree(self.home / "counted")
        return counted.events

    def _where(self, kind: str) -> dict[str, Any]:
        return {"places": self.cell.places} if kind == "places" else {}

    def strike(self, fault: str, n: int, event: str) -> Outcome:
        """Let the n-th event crash, find the disk full or be killed, go on, and compare."""
        place = f"{fault}-{n}"
        kind = "places" if fault == "place" else fault
        struck = self._go(place, fault={"kind": kind, "at": n, **self._where(kind)})
        wanted = WANTED[fault]
        # A report that cannot be written is told, and ends no run: `llmft report` makes it anew.
        report = fault == "full" and struck.code == 0 and "tracker 'report' failed" in struck.text
        if struck.code != wanted and not report:
            return self._told(place, fault, event, f"exit code {struck.code}, not {wanted}")
        told = [line for line in struck.text.splitlines() if "error[" in line]
        if fault == "full" and (len(told) != 1 or "error[E202]" not in told[0]):
            return self._told(place, fault, event, "the full disk was not told in one line")
        return self._ended(place, fault, event, struck)

    def damage(self, name: str, damage: Any) -> Outcome:
        """Kill the run after its second checkpoint, damage that, go on, and compare."""
        place = f"damage-{name.replace(' ', '-')}"
        kill = {"kind": "signal", "number": signal.SIGKILL, "phase": "train", "at": 5}
        killed = self._go(place, fault=kill)
        steps = sorted(killed.folder.glob("stages/*/checkpoints/step-*"))
        damage(steps[-1])
        outcome = self._ended(place, "damage", name, killed, keep=True)
        text = (self.home / place / "out.txt").read_text()
        shutil.rmtree(self.home / place)
        if outcome.result == "exact" and f"{steps[-1].name} is skipped" not in text:
            return Outcome(str(self.cell), "damage", name, "was not recognised")
        return outcome

    def kill(self, seed: int, times: int, longest: float) -> list[Outcome]:
        """Kill a run so many times in a row, each at a random moment, and compare at the end."""
        dice, place, resumes = random.Random(seed), f"kill-{seed}", False
        steps: list[int] = []

        def kill(pid: int) -> None:
            time.sleep(dice.uniform(0.01, longest))
            os.kill(pid, signal.SIGKILL)

        ended: Ended | None = None
        for _ in range(times):
            ended = self._go(place, resume=resumes, kill=kill)
            if ended.code == 0:
                break  # it was faster
            resumes = resumes or (ended.folder / "run.json").is_file()
            steps.append(last_step(ended.folder))
        assert ended is not None
        last = self._ended(place, "SIGKILL", f"{len(steps)} in a row", ended)
        return [Outcome(last.method, "SIGKILL", "any time", last.result, step) for step in steps]

    def _ended(
        self, place: str, fault: str, event: str, struck: Ended, keep: bool = False
    ) -> Outcome:
        self.canaries.search(self.home / place)
        resumes = (struck.folder / "run.json").is_file()
        step = last_step(struck.folder)
        after = self._go(place, resume=resumes)
        self.canaries.search(self.home / place)
        result = "exact"
        if after.code != 0:
            result = f"exit code {after.code} when it went on"
        elif "Traceback" in struck.text + after.text:
            result = "a traceback"
        elif state_of(after.folder) != self.state:
            result = "other bits"
        elif resumes and list(after.folder.rglob(".staging-*")):
            result = "half-written files stayed"
        return self._told(place, fault, event, result, step, keep or result != "exact")

    def _told(
        self, place: str, fault: str, event: str, result: str, step: int = 0, keep: bool = True
    ) -> Outcome:
        if not keep:
            shutil.rmtree(self.home / place)
        return Outcome(str(self.cell), fault, event, result, step)


def last_step(folder: Path) -> int:
    """Return the last step that a run's metrics tell of."""
    step = 0
    for path in folder.glob("stages/*/metrics.jsonl"):
        for line in path.read_text("utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # torn by the kill
                continue
            step = max(step, entry["step"]) if entry["phase"] == "train" else step
    return step
