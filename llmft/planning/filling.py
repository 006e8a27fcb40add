"""What fills a GPU's passes: the largest budget of tokens that fits, where a step has several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llmft.api import Alignment
from llmft.planning.fitting import Memory
from llmft.planning.planner import RecipePlan, StagePlan, plan_stage
from llmft.recipes.references import ANOTHER_RUN, row_references

SIZES = (32_768, 16_384, 8_192, 4_096, 2_048, 1_024)
"""Budgets that are tried, the largest first; a GPU is about full at 8,192."""
FEWER = 0.8
"""Passes of a step that are worth a change, as a share of those before."""


@dataclass(frozen=True, slots=True)
class Filling:
    """A budget of a stage, the peak with it, and the passes of a step before and with it.

    plan: the recipe's, with it.
    """

    stage: str
    tokens: int
    peak: int
    before: float
    passes: float
    plan: RecipePlan


def fillings(plan: RecipePlan, memory: Memory) -> list[Filling]:
    """Return a budget for each stage whose passes would be fewer.

    None on a CPU, which gains little by it, and none where not all of the plan fits.
    """
    if memory.in_ram or plan.worst.peak.total > memory.room:
        return []
    found = []
    for stage in plan.stages:
        for tokens in _candidates(plan, stage, memory.room):
            made = _with_budget(plan, stage, tokens)
            if made.peak <= memory.room:
                found += [made] if made.passes <= FEWER * made.before else []
                break
    return found


def _candidates(plan: RecipePlan, stage: StagePlan, room: int) -> Iterator[int]:
    """Yield budgets that a step's tokens fill, and that are likely to fit."""
    bound = plan.job.stage(stage.name)
    train, counts = bound.spec.train, stage.counts
    takes = isinstance(bound.work, Alignment) and bound.work.supports_token_budget
    if not takes or counts is None or not stage.followed or train.per_device_train_tokens:
        return
    if counts.passes_per_step <= 1 or not counts.items:
        return
    data = bound.spec.data
    if data is not None and any(not name.startswith(ANOTHER_RUN) for name in row_references(data)):
        return  # rows that only the plan of the whole recipe has made up
    # A step's tokens of one process.
    rows = plan.processes.share(train.rows_per_step(plan.processes.count))
    whole = counts.tokens / counts.items * rows
    # The heaviest pass is no heavier than this: what moves with it is estimated as too little.
    heaviest = counts.longest * train.per_device_train_batch_size
    fixed, moving = stage.peaks[0].total, stage.peak.total - stage.peaks[0].total
    for tokens in SIZES:
        if tokens < 2 * whole and fixed + moving * tokens / heaviest <= room:
            yield tokens


def _with_budget(plan: RecipePlan, stage: StagePlan, tokens: int) -> Filling:
    spec = plan.recipe.stage(stage.name)
    train = spec.train.model_copy(update={"per_device_train_tokens": tokens})
    spec = spec.model_copy(update={"train": train})
    changed = [spec if one.name == spec.name else one for one in plan.recipe.stages]
    job = plan.job.with_stage(plan.recipe.model_copy(update={"stages": changed}), spec)
    bound = job.stage(stage.name)
    made = plan_stage(job, bound, plan.base, in_ram=False, processes=plan.processes)
    stages = tuple(made if one.name == stage.name else one for one in plan.stages)
    before, after = stage.counts, made.counts
    assert before is not None
    assert after is not None
    return Filling(
        stage.name, tokens, made.peak.total, before.passes_per_step, after.passes_per_step,
        replace(plan, job=job, stages=stages),
    )  # fmt: skip
