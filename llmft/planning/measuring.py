"""A few real steps of each stage, in a process of its own, to tell how long all would take."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmft.api.errors import EnvironmentFault, LlmftError
from llmft.api.evaluate_settings import EvaluateSettings
from llmft.planning.planner import RecipePlan, StagePlan
from llmft.planning.timing import SCORING, TRAINING, PlanTime, StageTime, stage_time, together
from llmft.recipes.sources import data_blocks
from llmft.reporting.run_facts import RunFacts, run_facts
from llmft.reporting.run_list import run_folders
from llmft.system import trust
from llmft.system.processes import run_python

STEPS, ROWS, BATCHES, PROMPTS = 6, 256, 2, 2
"""Steps of a stage; rows and prompts it reads at least; batches that are scored."""
GRACE = 30.0
"""Seconds in which a measurement that was asked to stop writes what it knows."""


def measured(plan: RecipePlan, seconds: float) -> PlanTime:
    """Return a recipe's time by its own first steps, taken here and now and thrown away.

    seconds: after which the measurement is stopped; what it did not reach is named as missing.
    Raises EnvironmentFault (E217) where no stage was reached, with what the child said.
    """
    with tempfile.TemporaryDirectory() as scratch:
        place, log = Path(scratch, "runs"), Path(scratch, "log")
        words = [str(plan.job.source.path)]
        for change in [*plan.job.source.overrides, *_changes(plan, place)]:
            words += ["--set", change]
        for file in trust.granted():  # what runs for the plan may run for its steps
            words += ["--trust", file]
        with log.open("wb") as out:
            run_python("llmft", "run", *words, out=out, seconds=seconds, grace=GRACE)
        said = log.read_text("utf-8", errors="replace")
        found = list(_times(plan, place))
    if not found:
        last = [line for line in said.splitlines() if line.strip()]
        what = f"no step was measured within {seconds:g} seconds"
        errors = [line for line in last if line.startswith("error")]
        raise EnvironmentFault(
            "E217",
            what + (f": {errors[0][:500]}" if errors else ""),
            fix="measure longer (--measure 600), or plan without --measure",
        )
    return together(plan, found, f"measured in {STEPS} steps a stage: busier, it takes longer")


def _times(plan: RecipePlan, place: Path) -> Iterator[StageTime]:
    facts = _facts(place)
    if facts is None:
        return
    recipe = plan.recipe.resolved()
    for stage in plan.stages:
        block = next(one for one in recipe["stages"] if one["name"] == stage.name)
        told = next((one for one in facts.stages if one.name == _first_round(plan, stage)), None)
        if told is None or (time := stage_time(stage, block, told, "")) is None:
            continue
        lacks = set(time.lacks)
        if stage.held_out and SCORING not in time.parts:
            lacks.add(SCORING)
        if stage.trains and TRAINING not in time.parts:
            lacks.add(TRAINING)
        yield StageTime(stage.name, time.parts, "its first steps, measured", tuple(sorted(lacks)))


def _first_round(plan: RecipePlan, stage: StagePlan) -> str:
    return f"{stage.name}-1" if stage.rounds > 1 else stage.name


def _facts(place: Path) -> RunFacts | None:
    try:
        folders = run_folders(place)
        return run_facts(folders[0], whole=False) if folders else None
    except LlmftError:  # it was stopped before there was anything to read
        return None


def _changes(plan: RecipePlan, place: Path) -> Iterator[str]:
    """Yield what `--set` changes in the recipe: a few steps, nothing told or sent, nothing kept."""
    yield _set("output_dir", str(place))
    yield _set("trackers", [{"method": "console"}])
    if plan.recipe.push_to_hub:
        yield _set("push_to_hub", None)
    if plan.recipe.repeat:
        yield _set("repeat.rounds", 1)
    for number, bound in enumerate(plan.job.written_stages):
        stage, key = bound.spec, f"stages.{number}"
        train, asked = stage.train, stage.evaluate
        few = ROWS
        if stage.alignment is not None:
            few = max(ROWS, 4 * STEPS * train.rows_per_step(1))
            yield _set(f"{key}.train.max_steps", min(train.max_steps or STEPS, STEPS))
            yield _set(f"{key}.train.logging_steps", 1)
            yield _set(f"{key}.train.save_strategy", "no")
            for name in ("warmup_steps", "warmup_ratio"):
                if getattr(train, name):
                    yield _set(f"{key}.train.{name}", 0)
            if train.lr_scheduler_type != "constant":
                yield _set(f"{key}.train.lr_scheduler_type", "constant")
                if train.lr_scheduler_kwargs.model_dump(exclude_none=True):
                    yield _set(f"{key}.train.lr_scheduler_kwargs", {})
            if asked is not None:
                yield _set(f"{key}.evaluate", _scoring(asked, train.per_device_eval_batch_size))
                if asked.holdout is not None and asked.holdout >= 1:
                    few += math.ceil(asked.holdout)
        else:
            few = PROMPTS * train.per_device_eval_batch_size
        if stage.data is not None and bound.dataset is not None:
            sources = bound.dataset.sources or (bound.dataset,)
            for (place_of, _), dataset in zip(data_blocks(stage.data), sources, strict=True):
                limit = getattr(dataset.config, "limit", None)
                if hasattr(dataset.config, "limit"):
                    path = ".".join(map(str, place_of))
                    yield _set(f"{key}.{path}.limit", min(limit or few, few))


def _scoring(asked: EvaluateSettings, size: int) -> dict[str, Any]:
    """Return an evaluation of a few batches, and of none between two steps."""
    kept = ("metrics", "split", "holdout", "max_new_tokens")
    told = asked.model_dump(mode="json", exclude_defaults=True)
    few = BATCHES * size
    return {key: told[key] for key in kept if key in told} | {"limit": min(asked.limit or few, few)}


def _set(key: str, value: Any) -> str:
    return f"{key}={json.dumps(value)}"
