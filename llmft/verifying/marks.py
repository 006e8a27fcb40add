"""Moments of a run: at which one a process can be killed, and in which order rows came."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SAVE, PUBLISH, TRAIN = "save", "publish", "train"


@dataclass(frozen=True)
class Mark:
    """A moment: the stage, its steps done so far, and how far a phase is in it."""

    stage: str
    step: int
    phase: str
    done: int

    def __str__(self) -> str:
        where = {
            TRAIN: f"after step {self.step}",
            SAVE: f"while step-{self.step} was saved",
            PUBLISH: "while the result was written",
        }
        other = f"after step {self.step}, in '{self.phase}' at {self.done}"
        return f"{self.stage}: {where.get(self.phase, other)}"


def chosen(marks: Sequence[Mark], kills: int, seed: int) -> list[Mark]:
    """Return so many different moments in their order: two thirds in training and in saves."""
    different = list(dict.fromkeys(marks))
    rng = random.Random(seed)
    inner = [n for n, mark in enumerate(different) if mark.phase in (TRAIN, SAVE)]
    outer = [n for n, mark in enumerate(different) if mark.phase not in (TRAIN, SAVE)]
    taken = rng.sample(inner, min(len(inner), kills - kills // 3))
    taken += rng.sample(outer, min(len(outer), kills - len(taken)))
    return [different[n] for n in sorted(taken)]


class Recorder:
    """Writes a process's moments and its row order to a file, and kills it at one of them.

    It wraps what every stage passes through, so that a recipe runs as it is, trackers and all.
    """

    def __init__(self, path: Path, kill_at: Mark | None) -> None:
        self.path, self.kill_at = path, kill_at
        self.stage, self.step = "", 0

    def install(self) -> None:
        """Listen to this process from now on."""
        from llmft.engine.trackers import Trackers
        from llmft.runs.artifacts import RESULT
        from llmft.system import fsio
        from llmft.training.checkpoints import FOLDER, Checkpoints
        from llmft.training.step_plan import Plan

        told, newest, batches = Trackers.progress, Checkpoints.newest, Plan.step_batches
        write_json, write_tensors = fsio.write_json, fsio.write_tensors

        def progress(trackers: Trackers, progress: Any) -> None:
            told(trackers, progress)
            if progress.stage != self.stage:
                self.stage, self.step = progress.stage, 0
            if progress.phase == TRAIN:
                self.step = progress.done
            self.mark(progress.phase, progress.done)

        def resumed_from(checkpoints: Checkpoints) -> Any:
            saved = newest(checkpoints)
            self.step = saved.step if saved else 0
            return saved

        def step_batches(plan: Plan, step: int) -> list[list[int]]:
            found = batches(plan, step)
            text = json.dumps(found).encode()
            self.write(
                {"stage": self.stage, "step": step, "rows": hashlib.sha256(text).hexdigest()}
            )
            return found

        def saved(path: Path, tensors: Any) -> None:
            write_tensors(path, tensors)
            if path.parent.parent.name == FOLDER:
                self.mark(SAVE, 0)

        def published(path: Path, value: Any) -> None:
            if path.name == RESULT:
                self.mark(PUBLISH, 0)
            write_json(path, value)

        for owner, name, listening in (
            (Trackers, "progress", progress),
            (Checkpoints, "newest", resumed_from),
            (Plan, "step_batches", step_batches),
            (fsio, "write_tensors", saved),
            (fsio, "write_json", published),
        ):
            setattr(owner, name, listening)

    def mark(self, phase: str, done: int) -> None:
        """Write a moment down; die there if it is the one."""
        mark = Mark(self.stage, self.step, phase, done)
        self.write({"mark": asdict(mark)})
        if mark == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, entry: dict[str, Any]) -> None:
        """Append a line in one system call, so that a kill tears none."""
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(handle, (json.dumps(entry) + "\n").encode())
        os.close(handle)


def read_marks(path: Path) -> list[Mark]:
    """Return the moments a process wrote down."""
    return [Mark(**entry["mark"]) for entry in _entries(path) if "mark" in entry]


def row_order(path: Path) -> dict[str, dict[int, set[str]]]:
    """Return by stage and step which batches were seen: one digest, where each try saw the same."""
    order: dict[str, dict[int, set[str]]] = {}
    for entry in _entries(path):
        if "rows" in entry:
            steps = order.setdefault(entry["stage"], {})
            steps.setdefault(entry["step"], set()).add(entry["rows"])
    return order


def _entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
