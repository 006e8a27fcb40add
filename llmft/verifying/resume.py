"""A recipe run straight, and run again with kills, and both compared: does it resume to the bit?"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmft.api.errors import CheckpointError, Fault, LlmftError, Place
from llmft.recipes.job import Job
from llmft.recipes.recipe import Recipe, Stage
from llmft.recipes.references import ANOTHER_RUN, references
from llmft.system import processes, trust
from llmft.verifying.comparing import Finding, compare
from llmft.verifying.marks import Mark, chosen, read_marks, row_order

SAVES = 4  # checkpoints in a stage whose recipe writes none


@dataclass
class Verdict:
    """What was killed where, and what came of it."""

    kills: list[Mark] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def differences(self) -> list[Finding]:
        """What is not the same to the bit."""
        return [finding for finding in self.findings if finding.difference]


def overrides_for(recipe: Recipe, steps: int | None) -> list[str]:
    """Return what makes a recipe fit to be tried: nobody outside is told, and checkpoints are.

    steps: optimiser steps of each stage; default: as the recipe says.
    """
    changes = ["trackers=[{method: jsonl}]"]
    changes += ["push_to_hub=null"] if recipe.push_to_hub else []
    for stage in recipe.stages:
        if not stage.adapter and not stage.alignment:
            continue  # a task, which trains nothing
        changes += [f"stages.{stage.name}.train.{text}" for text in _of_a_stage(stage, steps)]
    return changes


def _of_a_stage(stage: Stage, steps: int | None) -> list[str]:
    """Shorten a stage, and let it save in between where its recipe would not."""
    changes = [f"max_steps={steps}"] if steps else []
    every, known = stage.train.save_steps, steps or stage.train.max_steps
    saves = stage.train.save_strategy == "epoch" and not steps
    if stage.train.save_strategy == "steps":
        saves = not steps or every < (1 if every < 1 else steps)
    if saves:
        return changes
    if known is None:
        return [*changes, "save_strategy=epoch"]
    return [*changes, "save_strategy=steps", f"save_steps={max(1, known // SAVES)}"]


def verify_resume(
    job: Job, changes: Sequence[str], work: Path, kills: int, seed: int,
    tell: Callable[[str], None],
) -> Verdict:  # fmt: skip
    """Run a recipe straight and with kills under the folder `work`, and return what differs.

    changes: overrides beside the recipe's own. tell: hears what is going on.
    Raises what the straight run raises, and CheckpointError where a killed run cannot go on.
    """
    tries = [Try(job, changes, work / name) for name in ("straight", "killed")]
    tell("running the recipe without interruption")
    straight = tries[0].run(None)
    assert straight is not None
    verdict = Verdict(kills=chosen(read_marks(tries[0].marks), kills, seed))
    for number, mark in enumerate(verdict.kills, start=1):
        tell(f"kill {number} of {len(verdict.kills)}: {mark}")
        if tries[1].run(mark) is not None:
            raise CheckpointError("E406", f"the moment '{mark}' did not occur again")
    tell("running it to its end")
    resumed = tries[1].run(None)
    assert resumed is not None
    orders = row_order(tries[0].marks), row_order(tries[1].marks)
    verdict.findings = compare(straight, resumed, orders)
    return verdict


def bring_upstream_runs(recipe: Recipe, place: Path) -> None:
    """Let stages that go on from an earlier run find it under `place`, as their output_dir."""
    there, earlier = Path(recipe.output_dir).resolve(), place / "earlier"
    ids = {
        reference.target.removeprefix(ANOTHER_RUN).partition("/")[0]
        for reference in references(recipe)
        if reference.is_of_another_run
    }
    for run in (run for run_id in sorted(ids) for run in there.glob(f"*/{run_id}")):
        earlier.mkdir(exist_ok=True)
        (earlier / run.name).symlink_to(run)


class Try:
    """One run of the recipe in its own folder, in one process after another."""

    def __init__(self, job: Job, changes: Sequence[str], place: Path) -> None:
        self.job, self.place = job, place
        self.marks = place / "marks.jsonl"
        self.overrides = [*job.source.overrides, *changes, f"output_dir={json.dumps(str(place))}"]
        place.mkdir(parents=True)
        bring_upstream_runs(job.recipe, place)

    def run(self, kill_at: Mark | None) -> Path | None:
        """Start it, or go on; return its folder, or None where it was killed as asked."""
        ended = self.place / "ended.json"
        ended.unlink(missing_ok=True)
        order = {
            "recipe": self.job.source.path,
            "overrides": self.overrides,
            "trust": trust.granted(),
            "run_folder": self._run_folder(),
            "marks": str(self.marks),
            "kill_at": asdict(kill_at) if kill_at else None,
            "ended": str(ended),
        }
        path = self.place / "job.json"
        path.write_text(json.dumps(order), "utf-8")
        with (self.place / "out.txt").open("ab") as out:
            code = processes.run_python("llmft.verifying.child", str(path), out=out)
        if code == -signal.SIGKILL and kill_at and not ended.exists():
            return None
        if not ended.exists():
            what = f"a process ended with {code} on its own; its output is in '{out.name}'"
            raise LlmftError("E900", what)
        told = json.loads(ended.read_text("utf-8"))
        if "errors" in told:
            raise raised(told)
        return Path(told["folder"])

    def _run_folder(self) -> str | None:
        """Return the folder that can be gone on with; None before the run has got that far."""
        runs = sorted(self.place.glob(f"{self.job.recipe.name}/*/run.json"))
        return str(runs[-1].parent) if runs else None


def raised(told: dict[str, Any]) -> LlmftError:
    """Return the error that a process ended with, as if it had been raised here."""
    error = LlmftError.of([_fault(one) for one in told["errors"]])
    error.exit_code = told["code"]
    return error


def _fault(told: dict[str, Any]) -> Fault:
    at = Place(told["file"], told["line"] or 0, told["column"] or 0) if told["file"] else None
    return Fault(told["code"], told["what"], told["fix"] or "", told["path"] or "", at)
