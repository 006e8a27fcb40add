"""A stage's checkpoints: written whole, checked before they are used, the newest few kept."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft.api.errors import CheckpointError, EnvironmentFault
from llmft.system import distributed, fsio
from llmft.training.validation import best_step

if TYPE_CHECKING:
    import torch

FOLDER = "checkpoints"
STATE, TENSORS = "state.json", "state.safetensors"

log = logging.getLogger("llmft")


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read and verified.

    carried: what the stage gave to be kept beside the training state.
    """

    step: int
    tensors: Mapping[str, torch.Tensor]
    facts: Mapping[str, Any]
    carried: Mapping[str, Any]


@dataclass
class Checkpoints:
    """The checkpoints of one stage, in folders `step-<n>`.

    identity: what must be the same when the stage goes on, such as hashes of its rows.
    keep: so many stay, the newest and `best`, the step of the best evaluation so far. note: is told
    what a person should read. accept_data: go on though the rows are others. on_saved: is called
    with the step of each that was written.
    """

    folder: Path
    run_id: str
    identity: Mapping[str, Any]
    keep: int = 2
    note: Callable[[str], None] = log.info
    accept_data: bool = False
    carried: Mapping[str, Any] = field(default_factory=dict)
    save_ms: list[float] = field(default_factory=list)
    on_saved: Callable[[int], None] = lambda step: None
    best: int | None = None

    def save(
        self, step: int, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]
    ) -> None:
        """Write the state after a step, then take away the oldest beyond `keep`."""
        started = time.perf_counter()
        target = self.folder / f"step-{step}"
        if target.exists():  # one that did not verify: an intact one would have been resumed from
            fsio.remove_folder(target)
        state = {
            "run_id": self.run_id,
            "step": step,
            "fingerprint": self.identity,
            "facts": facts,
            "carried": self.carried,
        }
        with fsio.staged_folder(target, self.run_id) as staged:
            fsio.write_tensors(staged / TENSORS, tensors)
            fsio.write_json(staged / STATE, state)
        self._prune(step)
        self.save_ms.append((time.perf_counter() - started) * 1e3)
        log.info("checkpoint step-%d written in %.0f ms", step, self.save_ms[-1])
        self.on_saved(step)

    def metrics(self) -> dict[str, float]:
        """Return how many were written by this process, and how long each took on average."""
        saves = len(self.save_ms)
        mean = round(sum(self.save_ms) / saves, 1) if saves else 0.0
        return {"checkpoints": saves, "checkpoint_ms": mean} if saves else {}

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint folder, newest first; times are never asked."""
        names = [path.name for path in self.folder.glob("step-*")]
        return sorted((int(n[5:]) for n in names if n[5:].isdecimal()), reverse=True)

    def newest(self) -> Saved | None:
        """Return the newest checkpoint that verifies, noting those that do not, or None.

        Raises CheckpointError where none of several verifies, and where one is not of this run or
        of other rows.
        """
        if self.folder.is_dir():
            fsio.sweep_staging(self.folder)
        reasons = []
        for step in self.steps():
            try:
                with fsio.as_a_run_wrote(self.folder / f"step-{step}", "use an earlier one"):
                    saved = self._read(step)
            except CheckpointError as error:
                if error.faults[0].code != "E401":
                    raise
                reasons.append(error.faults[0].what)
                self.note(f"checkpoint step-{step} is skipped: {reasons[-1]}")
                continue
            self.best = best_step(saved.facts)
            self._prune(step)
            return saved
        if reasons:
            raise CheckpointError(
                "E403",
                f"none of {len(reasons)} checkpoints in '{self.folder}' can be used: {reasons[0]}",
                fix="remove the folder to restart the stage, or start a new run",
            )
        return None

    def _prune(self, newest: int) -> None:
        """Take away the oldest, but never the best one.

        A damaged one that is newer does not count as one that is kept.
        """
        there = [step for step in self.steps() if step <= newest]
        kept = self.keep - (self.best in there[self.keep :])
        for old in there[kept:]:
            if old != self.best:
                fsio.remove_folder(self.folder / f"step-{old}")

    def in_all(self, read: Callable[[], Saved | None]) -> Saved | None:
        """Return in each process what the first one reads, which is called there alone.

        The others map the tensors of the same file: none is sent, and those that a process does not
        ask for are never in its memory. Raises CheckpointError where one cannot see the folder.
        """
        here: list[Saved | None] = []

        def told() -> tuple[Saved | None, Path]:
            here.append(saved := read())
            return saved and replace(saved, tensors={}), self.folder.absolute()

        saved, folder = distributed.on_rank_zero(told)
        if here or saved is None:
            return here[0] if here else None
        try:
            return replace(saved, tensors=_mapped(folder, saved.step))
        except OSError as error:
            raise CheckpointError(
                "E401",
                f"'{folder}', whose checkpoint step-{saved.step} the run goes on from, cannot be"
                f" read in process {distributed.rank()}: {error}",
                fix="run in a folder that all machines see (--output-dir)",
            ) from error

    def best_saved(self) -> Saved:
        """Return the best checkpoint's tensors, without what stands beside them; as best_tensors"""
        tensors = self.best_tensors()
        assert self.best is not None
        return Saved(self.best, tensors, {}, {})

    def best_tensors(self) -> Mapping[str, torch.Tensor]:
        """Return the tensors of the best checkpoint.

        Raises CheckpointError where it is not there any more, or damaged.
        """
        assert self.best is not None
        try:
            return self.tensors(self.best)
        except (CheckpointError, OSError) as error:
            reason = error.faults[0].what if isinstance(error, CheckpointError) else str(error)
            raise CheckpointError(
                "E403",
                f"the best checkpoint, step-{self.best}, cannot be used: {reason}",
                fix="restore it, or run the stage again with --from",
            ) from error

    def tensors(self, step: int) -> Mapping[str, torch.Tensor]:
        """Return the tensors of the checkpoint after a step, whatever rows it was made of.

        Raises CheckpointError where it is damaged, or of another run.
        """
        with fsio.as_a_run_wrote(self.folder / f"step-{step}", "use another one"):
            self._state(step)
        return _mapped(self.folder, step)

    def _read(self, step: int) -> Saved:
        state = self._state(step)
        self._refuse_other(state["fingerprint"])
        return Saved(step, _mapped(self.folder, step), state["facts"], state["carried"])

    def _state(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint of this run says beside its tensors, verified."""
        folder = self.folder / f"step-{step}"
        run_id = fsio.verify_folder(folder)
        present = {path.name for path in folder.iterdir()}
        if present != {STATE, TENSORS, fsio.MANIFEST}:
            raise CheckpointError("E401", f"'{folder}' holds {', '.join(sorted(present))}")
        listed = json.loads((folder / fsio.MANIFEST).read_text("utf-8"))["sha256"]
        state = json.loads((folder / STATE).read_text("utf-8"))
        if set(listed) != {STATE, TENSORS} or (run_id, step) != (state["run_id"], state["step"]):
            raise CheckpointError("E401", f"'{folder}' and its {fsio.MANIFEST} disagree")
        if run_id != self.run_id:
            raise CheckpointError(
                "E405",
                f"'{folder}' is a checkpoint of the run '{run_id}', not of '{self.run_id}'",
                fix="remove it; if the run folder was renamed, restore its name",
            )
        return dict(state)

    def _refuse_other(self, identity: Mapping[str, Any]) -> None:
        ours = json.loads(json.dumps(self.identity))
        differs = [key for key in {**identity, **ours} if identity.get(key) != ours.get(key)]
        if not differs:
            return
        what = (
            f"{', '.join(differs)} of the stage {'has' if len(differs) == 1 else 'have'} changed"
            " since it began"
        )
        if self.accept_data:
            self.note(f"not bit-exact: {what}, which --accept-data-change accepts")
            return
        raise CheckpointError(
            "E405",
            f"the run's checkpoints are of other data: {what}",
            fix="restore the data, start a new run, or continue with the data as it is now:"
            " --accept-data-change",
        )


def _mapped(folder: Path, step: int) -> Mapping[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / f"step-{step}" / TENSORS)


def newest_carried(folder: Path) -> Mapping[str, Any]:
    """Return what the newest checkpoint in a folder carries, by its own word; {} without one."""
    steps = sorted(folder.glob("step-*"), key=lambda path: path.name[5:].zfill(20), reverse=True)
    for step in steps:
        with suppress(CheckpointError, OSError):  # a damaged one: see `Checkpoints.newest`
            state: Any = fsio.read_json(step / STATE, "")
            carried = state.get("carried") if isinstance(state, dict) else None
            if isinstance(carried, dict):
                return carried
    return {}


def check_space(folder: Path, size: int, count: int) -> None:
    """Raise EnvironmentFault where the disk cannot hold so many more checkpoints of that size."""
    with fsio.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    if free < size * count:
        raise EnvironmentFault(
            "E202",
            f"'{folder}' needs {size * count / 1e6:,.1f} MB ({count} checkpoints of"
            f" {size / 1e6:,.1f} MB), and the disk has {free / 1e6:,.1f} MB free",
            fix="free some space, give another --output-dir, or lower train.save_total_limit",
        )
