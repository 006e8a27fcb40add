"""The first steps of a stage by llmft and by TRL's trainer: ids and labels, losses, and cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmft.api.errors import LlmftError, RecipeError
from llmft.engine.auto_precision import decided
from llmft.modeling.base_model import BaseModel
from llmft.recipes.job import BoundStage, Job
from llmft.system import processes, trust
from llmft.verifying.first_steps import STEPS
from llmft.verifying.resume import raised
from llmft.verifying.trl_steps import TRL_STEPS, flat, no_counterpart

# Of a loss, relative: four digits where numbers are float32; bfloat16 holds three of its own.
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-2}
NORMS = 10
"""By so much more may gradients' norms be apart, as they are sums of many numbers."""
LEAST = 0.01
"""A loss of sampled answers that is nearer to 0 than this is held as if it were so large."""


@dataclass(frozen=True)
class Parting:
    """The first place where a row's ids or labels differ. at: its token, counted from 0."""

    origin: str
    what: str
    at: int
    ours: tuple[int, ...]
    theirs: tuple[int, ...]


@dataclass(frozen=True)
class Cost:
    """What the steps took. tokens: of the rows, without padding."""

    cpu_seconds: float
    seconds: float
    peak_mib: float
    tokens: int


@dataclass(frozen=True)
class Verdict:
    """What both sides did. allowed: of losses, relative. dropouts: how many were switched off.

    norms: of the gradients before clipping, where answers are sampled: there the loss is a mean of
    advantages, which may be nothing but rounding, so that below LEAST it is held absolutely.
    """

    stage: str
    trainer: str
    version: str
    rows: int
    partings: tuple[Parting, ...]
    losses: tuple[tuple[float, float], ...]
    allowed: float
    costs: tuple[Cost, Cost]
    dropouts: int
    norms: tuple[tuple[float, float], ...] = ()

    @property
    def least(self) -> float:
        """The size that a loss is taken to have at least, where differences are measured by it."""
        return LEAST if self.norms else 0.0

    def unlike(self) -> tuple[str, int] | None:
        """Return what differs first, the loss or the gradient's norm, and at which step from 1."""
        for step, pair in enumerate(self.losses, start=1):
            if not _agree(pair, self.allowed, self.least):
                return "loss", step
        for step, pair in enumerate(self.norms, start=1):
            if not _agree(pair, NORMS * self.allowed, 0.0):
                return "gradient's norm", step
        return None

    @property
    def fine(self) -> bool:
        """Whether the rows are the same, and the losses."""
        return not self.partings and self.unlike() is None


def changes_for(job: Job, stage: str) -> list[str]:
    """Return what makes a recipe fit to be tried: nothing is saved, scored or sent."""
    changes = ["trackers=[{method: jsonl}]"]
    changes += ["push_to_hub=null"] if job.written.push_to_hub else []
    train = {"save_strategy": "no", "logging_steps": 1, "packing": "false"}
    train |= {"packing_strategy": "bfd", "cross_document_attention": "false"}
    changes += [f"stages.{stage}.train.{name}={value}" for name, value in train.items()]
    spec = next(one for one in job.written.stages if one.name == stage)
    return [*changes, *([f"stages.{stage}.evaluate=null"] if spec.evaluate else [])]


def stage_of(job: Job, name: str | None) -> BoundStage:
    """Return the stage of that name, or the first; RecipeError where TRL has no counterpart."""
    found = [stage for stage in job.stages if name in (None, stage.name)]
    if not found:
        known = ", ".join(stage.name for stage in job.stages)
        raise RecipeError("E090", f"there is no stage '{name}'", fix=f"name one of {known}")
    if why := no_counterpart(job, found[0]):
        raise _no(found[0], why)
    return found[0]


def verify_losses(
    job: Job, bound: BoundStage, changes: Sequence[str], work: Path, steps: int,
    tell: Callable[[str], None],
) -> Verdict:  # fmt: skip
    """Take the first steps of a stage twice, each in a process of its own, and return what differs.

    changes: overrides beside the recipe's own. work: an empty folder. tell: hears what is going on.
    Raises what the run raises, and RecipeError where TRL cannot train on the rows.
    """
    job, _ = decided(job, BaseModel(job.recipe.model))
    if bound.spec.train.bf16 == "auto":  # the same for both
        bound = job.stage(bound.name)
        bf16 = json.dumps(bound.spec.train.under_autocast)
        changes = [*changes, f"stages.{bound.name}.train.bf16={bf16}"]
    order = {
        "recipe": job.source.path,
        "overrides": [
            *job.source.overrides, *changes, f"output_dir={json.dumps(str(work / 'runs'))}",
        ],
        "stage": bound.name, "steps": steps, "folder": str(work),
        "ended": str(work / "ended.json"), "trust": trust.granted(),
    }  # fmt: skip
    path = work / "job.json"
    path.write_text(json.dumps(order), "utf-8")
    tell("the first steps by llmft")
    _child("llmft.verifying.first_steps", path, work / STEPS)
    ours = _read(work / STEPS)
    if ours["plan"]["rates"]:
        raise _no(bound, "some of its parameters have a learning rate of their own")
    if not all(row["record"] for row in flat(ours)):
        raise _no(bound, "TRL's data sets hold no rows of this kind")
    tell("the same steps by TRL")
    _child("llmft.verifying.trl_steps", path, work / TRL_STEPS)
    theirs = _read(work / TRL_STEPS)
    if "refused" in theirs:
        raise _no(bound, f"its trainer refuses the rows or settings: {theirs['refused']}")
    if theirs["start"]:
        raise _no(bound, f"its model has no such weights: {theirs['start']}")
    return _verdict(job, bound, ours, theirs)


def _no(bound: BoundStage, why: str) -> RecipeError:
    return RecipeError("E094", f"stage '{bound.name}' has no counterpart in TRL: {why}")


def _child(module: str, path: Path, result: Path) -> None:
    with (path.parent / "out.txt").open("ab") as out:
        code = processes.run_python(module, str(path), out=out)
    ended = path.parent / "ended.json"
    told = _read(ended) if ended.exists() else {}
    if "errors" in told:
        raise raised(told)
    if not result.exists():
        raise LlmftError("E900", f"a process ended with {code}; its output is in '{out.name}'")


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def _verdict(
    job: Job, bound: BoundStage, ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> Verdict:
    rows = flat(ours)
    in_half = bound.spec.train.under_autocast
    half = "bfloat16" if in_half else BaseModel(job.recipe.model).source.dtype
    counts = [
        sum(len(ids) for row in side for ids in row["ids"]) for side in (rows, theirs["rows"])
    ]
    costs = tuple(
        Cost(side["cpu_seconds"], side["seconds"], side["peak_mib"], tokens)
        for side, tokens in zip((ours, theirs), counts, strict=True)
    )
    partings = [p for a, b in zip(rows, theirs["rows"], strict=True) if (p := parting(a, b))]
    return Verdict(
        bound.name, theirs["trainer"], theirs["version"], len(rows), tuple(partings),
        tuple(zip(ours["losses"], theirs["losses"], strict=True)), TOLERANCES[half],
        (costs[0], costs[1]), ours["dropouts"],
        tuple(zip(ours["norms"], theirs["norms"], strict=True)) if "orders" in ours else (),
    )  # fmt: skip


def _agree(pair: tuple[float, float], allowed: float, least: float) -> bool:
    a, b = pair
    return abs(a - b) <= allowed * max(abs(a), abs(b), least)


def parting(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Parting | None:
    """Return where a row's ids part, else where its labels do; None where all are the same."""
    for what in ("ids", "labels"):  # a reward model has no labels
        for n, (a, b) in enumerate(zip(ours[what], theirs[what] or ours[what], strict=True)):
            if a != b:
                unlike = (i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1])
                at = next(unlike, min(len(a), len(b)))
                side = ("", "rejected ")[n]
                return Parting(ours["origin"], f"{side}{what}", at, tuple(a), tuple(b))
    return None
