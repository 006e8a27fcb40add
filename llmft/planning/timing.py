"""How long a run would take: intervals, where they come from, and the rate of an earlier run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmft.api.errors import LlmftError
from llmft.planning.planner import RecipePlan, StagePlan
from llmft.reporting.run_facts import RunFacts, StageFacts, run_facts
from llmft.reporting.run_list import run_folders
from llmft.runs import artifacts
from llmft.system import fsio

_LOOKED_AT = 20
"""Run folders that are read, the newest first: a plan must stay fast."""
BEYOND = 0.1
"""What one run cannot tell of another on the same machine, as a share."""

SET_UP, TRAINING, SCORING, WORKING = "set-up", "training", "scoring", "task"

FREE_OF_TIME = frozenset({
    "num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs",
    "warmup_steps", "warmup_ratio", "warmup_max_steps", "warmup_rounding", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon", "on_nan", "max_grad_norm", "logging_steps",
    "save_strategy", "save_steps", "save_total_limit", "max_dropped",
})  # fmt: skip
"""Training settings that do not change how long a step takes."""


@dataclass(frozen=True, slots=True)
class Seconds:
    """A time in seconds, and the interval in which it is expected."""

    low: float
    likely: float
    high: float

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def times(self, factor: float) -> Seconds:
        """Return so many times this."""
        return Seconds(self.low * factor, self.likely * factor, self.high * factor)

    def widened(self, share: float) -> Seconds:
        """Return the same with an interval that is wider by a share on both sides."""
        return Seconds(self.low / (1 + share), self.likely, self.high * (1 + share))


NONE = Seconds(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class StageTime:
    """What a stage would take. parts: by what is done (`set-up`, `training`, `scoring`, `task`).

    source: where the rates come from. lacks: parts of which nothing is known.
    """

    stage: str
    parts: Mapping[str, Seconds]
    source: str
    lacks: tuple[str, ...] = ()

    @property
    def whole(self) -> Seconds:
        """All parts together."""
        return sum(self.parts.values(), NONE)


@dataclass(frozen=True)
class PlanTime:
    """What a recipe would take: its stages, each as often as it runs, and a remark on the rates."""

    stages: tuple[StageTime, ...]
    whole: Seconds | None
    remark: str


def together(plan: RecipePlan, stages: Sequence[StageTime], remark: str) -> PlanTime:
    """Return the time of a recipe; its sum is None where a stage or a part of one is missing."""
    rounds = {stage.name: stage.rounds for stage in plan.stages}
    known = len(stages) == len(plan.stages) and not any(stage.lacks for stage in stages)
    whole = sum((stage.whole.times(rounds[stage.stage]) for stage in stages), NONE)
    return PlanTime(tuple(stages), whole if known else None, remark)


def from_earlier_runs(plan: RecipePlan) -> PlanTime | None:
    """Return a recipe's time by the newest run of each stage's shape on this machine.

    The same shape: the model, the adapter, the alignment, and every training setting that a step's
    time depends on. None where no stage has one.
    """
    recipe = plan.recipe.resolved()
    facts = list(_runs(Path(plan.recipe.output_dir), plan.recipe.name))
    found = []
    for stage in plan.stages:
        block = _block(recipe, stage.name)
        for run in facts:
            if (time := _by_run(stage, recipe, block, run)) is not None:
                found.append(time)
                break
    if not found:
        return None
    return together(plan, found, "as fast as this machine was then: busier, it takes longer")


def _by_run(
    stage: StagePlan, recipe: Mapping[str, Any], block: Mapping[str, Any], run: RunFacts
) -> StageTime | None:
    """Return a stage's time by a run that has one of its shape and tells of it."""
    try:
        with fsio.as_a_run_wrote(run.folder, artifacts.PUT_BACK):
            for told in run.stages:
                if told.result and _same_shape(recipe, block, run.recipe, told):
                    return stage_time(stage, block, told, run.folder.name)
    except LlmftError:  # its timeline is not of the form that a run writes
        return None
    return None


def _runs(place: Path, name: str) -> Iterator[RunFacts]:
    """Yield the newest runs of this machine and device, those of this recipe first."""
    if not place.is_dir():
        return
    folders = sorted(run_folders(place), key=lambda folder: folder.name, reverse=True)
    folders.sort(key=lambda folder: folder.parent.name != name)
    here = _machine()
    for folder in folders[:_LOOKED_AT]:
        try:
            facts = run_facts(folder, whole=False)
        except LlmftError:  # a damaged run tells nothing, and keeps nobody from planning
            continue
        if all(facts.lock.get(key) == value for key, value in here.items()):
            yield facts


def _machine() -> dict[str, Any]:
    from llmft.runs.provenance import ran_on

    return ran_on()


def _block(recipe: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(b for b in recipe["stages"] if b["name"] == name)
    return found


def _same_shape(
    recipe: Mapping[str, Any],
    block: Mapping[str, Any],
    other: Mapping[str, Any],
    stage: StageFacts,
) -> bool:
    theirs = stage.recipe
    keys = ("adapter", "alignment", "task")
    if not theirs or recipe.get("model") != other.get("model"):
        return False
    if theirs.get("name") != block.get("name") and theirs.get("data") != block.get("data"):
        return False
    return all(block.get(key) == theirs.get(key) for key in keys) and _of_a_step(
        block
    ) == _of_a_step(theirs)


def _of_a_step(block: Mapping[str, Any]) -> dict[str, Any]:
    train = block.get("train") or {}
    return {key: value for key, value in train.items() if key not in FREE_OF_TIME}


def stage_time(
    stage: StagePlan, block: Mapping[str, Any], told: StageFacts, run: str
) -> StageTime | None:
    """Return a stage's time by what a run told of the same stage; None where it told nothing."""
    phases = [phase for phase in told.timeline.get("phases", []) if _is_whole(phase)]
    if not phases:
        return None
    scale = _Scale.of(stage, block, told)
    parts: dict[str, Seconds] = {}
    first = next((n for n, phase in enumerate(phases) if phase["phase"] == "train"), None)
    for number, phase in enumerate(phases):
        kind, factor = scale.of_phase(phase, stage.trains, first is None or number < first)
        parts[kind] = parts.get(kind, NONE) + _seconds(phase).times(factor)
    lacks = (TRAINING,) if stage.trains and TRAINING not in parts else ()
    widened = {kind: seconds.widened(BEYOND) for kind, seconds in parts.items()}
    return StageTime(stage.name, widened, f"run {run}", lacks)


def _is_whole(phase: Any) -> bool:
    return (
        isinstance(phase, dict)
        and isinstance(phase.get("phase"), str)
        and isinstance(phase.get("seconds"), int | float)
        and math.isfinite(phase["seconds"])
        and phase["seconds"] >= 0
    )


_CONSTANT = ("read the rows", "load the model")
_SCORES = ("evaluate", "answer")


@dataclass(frozen=True)
class _Scale:
    """How much more there is to do than the earlier run did, by what it depends on.

    steps: longer ones counted in. evaluate, answer: a scoring's phase, which this run has more of.
    """

    steps: float
    rows: float
    evaluate: float
    answer: float
    samples: float
    their_held_out: int

    @classmethod
    def of(cls, stage: StagePlan, block: Mapping[str, Any], told: StageFacts) -> _Scale:
        timeline, counts = told.timeline, stage.counts
        phases = [phase for phase in timeline.get("phases", []) if _is_whole(phase)]
        steps = rows = 1.0
        if counts is not None and (their_rows := timeline.get("rows")):
            rows = counts.rows / their_rows
            their_tokens = timeline.get("tokens", 0) / their_rows
            longer = counts.tokens / counts.rows / their_tokens if their_tokens else 1.0
            done = sum(phase.get("done", 0) for phase in phases if phase["phase"] == "train")
            steps = counts.steps / (done or timeline.get("steps") or counts.steps) * longer
        totals = [phase.get("total", 0) for phase in phases if phase["phase"] in _SCORES]
        theirs = max(totals, default=0)
        held_out = stage.held_out / theirs if theirs and stage.held_out else 1.0
        of_ours = (block.get("evaluate") or {}).get("max_new_tokens")
        of_theirs = (told.recipe.get("evaluate") or {}).get("max_new_tokens")
        longer = of_ours / of_theirs if of_ours and of_theirs else 1.0
        more = stage.evaluations
        made = sum(phase.get("done", 0) for phase in phases if phase["phase"] == "sample")
        return cls(
            steps=steps,
            rows=rows,
            evaluate=held_out * _more(phases, "evaluate", 2 + (more.times if more else 0)),
            answer=held_out
            * longer
            * _more(phases, "answer", 2 + (more.with_answers if more else 0)),
            samples=stage.drawn.prompts / made if stage.drawn and made and not stage.trains else 1,
            their_held_out=theirs,
        )

    def of_phase(
        self, phase: Mapping[str, Any], trains: bool, before_training: bool
    ) -> tuple[str, float]:
        """Return what a phase counts as, and how many times as long it would take here."""
        name = phase["phase"]
        if name == "train":
            return TRAINING, self.steps
        if name in _CONSTANT:
            return SET_UP, 1.0
        if not trains:
            return WORKING, self.samples
        if name == "answer":
            return SCORING, self.answer * _left_out(phase)
        if name == "evaluate" or phase.get("total", -1) == self.their_held_out:
            return SCORING, self.evaluate * _left_out(phase)
        return (SET_UP if before_training else TRAINING), self.rows * _left_out(phase)


def _more(phases: Sequence[Mapping[str, Any]], name: str, ours: int) -> float:
    """Return how many times as often a stage is scored here."""
    return ours / (sum(phase["phase"] == name for phase in phases) or ours)


def _left_out(phase: Mapping[str, Any]) -> float:
    """Return how many times as much a phase had to do as it did before the run was stopped."""
    done, total = phase.get("done"), phase.get("total")
    return total / done if done and total and done < total else 1.0


def _seconds(phase: Mapping[str, Any]) -> Seconds:
    """Return a phase's time, and as if all of it had been as fast, or slow, as its tenths were."""
    seconds = float(phase["seconds"])
    pace = [float(one) for one in phase.get("pace", ()) if _is_positive(one)]
    done = phase.get("done") or 0
    if len(pace) < 2 or not done:
        return Seconds(seconds, seconds, seconds)
    if phase["phase"] == "train" and 2 < done == len(pace):  # a few steps: the first warms up
        pace = pace[1:]
        seconds = math.fsum(pace) / len(pace) * done
    return Seconds(min(min(pace) * done, seconds), seconds, max(max(pace) * done, seconds))


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0
