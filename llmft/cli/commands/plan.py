"""`llmft plan RECIPE`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft.api.errors import RecipeError
from llmft.cli.commands import shipped
from llmft.cli.commands.output import prose, table
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.system.quiet import before_upstream, captured_output

if TYPE_CHECKING:
    from llmft.planning.filling import Filling
    from llmft.planning.fitting import Change, Memory
    from llmft.planning.planner import RecipePlan, StagePlan
    from llmft.planning.timing import PlanTime, Seconds


UNEVEN = 1.3
"""A process's share of a step's tokens, of an even one, of which a plan speaks."""


@dataclass(frozen=True)
class Verdict:
    """A plan, the memory it is held against, and what to change where it does not fit."""

    plan: RecipePlan
    memory: Memory
    changes: list[Change]
    time: PlanTime | None = None
    fillings: tuple[tuple[Filling, PlanTime | None], ...] = ()

    @property
    def fits(self) -> bool | None:
        """Whether every stage fits; None where what is counted does, and not all is counted."""
        if self.plan.worst.peak.total > self.memory.room:
            return False
        return True if all(stage.followed for stage in self.plan.stages) else None


def plan(
    recipe: str,
    overrides: Sequence[str],
    gpu: str | None,
    measure: float | None = None,
    gpus: int = 1,
) -> Verdict:
    """Return what a recipe would take, held against a named GPU or what this machine has.

    measure: the seconds that its first steps may take here; None: they are not taken. gpus: how
    many of them, with a process for each.
    Raises RecipeError (E090) where steps are to be measured here for a GPU elsewhere, or for
    several processes, or where this machine has not as many GPUs.
    """
    if measure and (gpu or gpus > 1):
        other = "--gpu" if gpu else "--gpus"
        fix = f"leave one out: {other} estimates, and --measure takes steps in one process here"
        raise RecipeError("E090", f"{other} and --measure exclude each other", fix=fix)
    job = load_recipe(shipped.find(recipe), Registry.discover(), overrides)
    before_upstream()
    with captured_output(Path(os.devnull)):  # upstream's chatter is no part of the answer
        from llmft.planning.filling import fillings
        from llmft.planning.fitting import changes, found_memory, named_memory
        from llmft.planning.planner import plan_recipe
        from llmft.planning.processes import named_processes
        from llmft.planning.roofline import card_here, named_card, on_card
        from llmft.planning.timing import from_earlier_runs

        card = named_card(gpu) if gpu else None
        size = f"{card.memory}GB" if card else gpu
        named = named_memory(size, card.name if card else "") if size else None
        elsewhere = card.name if card else f"a GPU of {gpu}" if gpu else ""
        processes = named_processes(gpus, gpu)
        in_ram = (named or found_memory()).in_ram
        found = plan_recipe(job, in_ram=in_ram, gpu=elsewhere, processes=processes)
        memory = named or found_memory()  # asked again: the libraries are in memory only now
        memory = memory.shared_by(processes)
        if card:
            time = on_card(found, card)
        elif named:
            time = None
        elif measure:
            from llmft.planning.measuring import measured

            time = measured(found, measure)
        else:
            time = None if processes.several else from_earlier_runs(found)
            if time is None and not memory.in_ram and (card := card_here(memory.name)):
                time = on_card(found, card)
        filled = tuple(
            (one, on_card(one.plan, card) if card else None) for one in fillings(found, memory)
        )
        return Verdict(found, memory, changes(found, memory), time, filled)


def as_json(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as plain data; sizes are bytes."""
    found, memory = verdict.plan, verdict.memory
    stages = [
        asdict(stage) | {"peak": {"phase": stage.peak.phase, "bytes": stage.peak.total}}
        for stage in found.stages
    ]
    return {
        "name": found.recipe.name,
        "model": found.recipe.model.path,
        "gpus": found.processes.count,
        "stages": stages,
        "network": list(found.network),
        "memory": asdict(memory) | {"room": memory.room},
        "fits": verdict.fits,
        "changes": [asdict(change) for change in verdict.changes],
        "time": _time_as_json(verdict.time),
        "fillings": [
            {
                "stage": one.stage, "per_device_train_tokens": one.tokens, "peak": one.peak,
                "passes_per_step": {"before": one.before, "after": one.passes},
                "time": _time_as_json(time),
            }
            for one, time in verdict.fillings
        ],
    }  # fmt: skip


def _time_as_json(time: PlanTime | None) -> dict[str, Any] | None:
    """Return times as plain data, in seconds."""
    if time is None:
        return None
    return {
        "stages": [asdict(stage) | {"whole": asdict(stage.whole)} for stage in time.stages],
        "whole": asdict(time.whole) if time.whole else None,
        "remark": time.remark,
    }


def as_text(verdict: Verdict) -> str:
    """Return a verdict as tables, one block for each stage."""
    found = verdict.plan
    model = found.recipe.model
    parts = [f"{found.recipe.name}: {model.path} in {found.base.source.dtype}"]
    if found.processes.several:
        parts.append(prose(_processes(found)))
    if len(found.stages) > 1:
        parts.append(_graph(found))
    parts += [_stage(number, stage) for number, stage in enumerate(found.stages, 1)]
    parts.append(_writes(found))
    network = "network\n" + "\n".join(f"  {line}" for line in found.network or ("nothing",))
    parts += [prose(network), _time(verdict), prose(_fits(verdict))]
    parts += [prose(_filled(verdict, *each)) for each in verdict.fillings]
    return "\n\n".join(parts)


def _processes(found: RecipePlan) -> str:
    """Return how the processes are started, and what a step of each stage is among them."""
    count = found.processes.count
    lines = [
        f"{count} GPUs with a process each, started by torchrun --nproc_per_node {count} -m llmft"
        " run: memory is each one's, and time is all of them together"
    ]
    for stage in found.stages:
        train = found.recipe.stage(stage.name).train
        if not stage.trains or stage.counts is None:
            continue
        rows, alone = train.rows_per_step(count), train.rows_per_step()
        line = f"  {stage.name}: {rows:,} rows a step over all"
        if rows != alone:
            line += f", where one process has {alone:,} (train.train_batch_size keeps them)"
        if stage.counts.busiest > UNEVEN / count:
            line += (
                f"; the busiest GPU has {stage.counts.busiest:.0%} of a step's tokens, where"
                f" {1 / count:.0%} would be even"
            )
        lines.append(line)
    return "\n".join(lines)


def _graph(found: RecipePlan) -> str:
    """Return a line for each stage: what it reads, does and makes, how much, and at what peak."""
    rows = [
        (
            f"{number}. {stage.name}",
            f"<- {', '.join(stage.inputs)}" if stage.inputs else "",
            f"{_what(stage)} -> {stage.produces}",
            f"x {stage.rounds} rounds" if stage.rounds > 1 else "",
            _amount(stage),
            _size(stage.peak.total),
        )
        for number, stage in enumerate(found.stages, 1)
    ]
    drawn = table(("stage", "reads", "does", "", "how much", "memory peak"), rows)
    repeat = found.recipe.repeat
    if repeat is None or repeat.rounds == 1:
        return drawn
    said = f"{repeat.stages[0]}-2 to {repeat.stages[-1]}-{repeat.rounds}"
    return f"{drawn}\nlater rounds, {said}, start from the policy of the round before"


def _amount(stage: StagePlan) -> str:
    if stage.drawn is not None and not stage.trains:
        return f"{stage.drawn.answers:,} answers"
    return f"{stage.counts.steps:,} steps" if stage.counts is not None else ""


def _what(stage: StagePlan) -> str:
    said = f"{stage.adapter} x {stage.work}" if stage.trains else stage.work
    return f"{said} on {stage.data}" if stage.data else said


def _stage(number: int, stage: StagePlan) -> str:
    inputs = f" <- {', '.join(stage.inputs)}" if stage.inputs else ""
    rounds = f", x {stage.rounds} rounds" if stage.rounds > 1 else ""
    lines = [f"{number}. {stage.name}{inputs}: {_what(stage)} -> {stage.produces}{rounds}"]
    share = stage.trainable_parameters / max(stage.total_parameters, 1)
    stored = f", the base in {stage.quantization}" if stage.quantization else ""
    lines.append(
        f"   trains {stage.trainable_parameters:,} of {stage.total_parameters:,} parameters"
        f" ({share:.2%}){stored}"
        if stage.trains
        else f"   trains none of {stage.total_parameters:,} parameters{stored}"
        if stage.total_parameters
        else "   loads no model"
    )
    if stage.drawn is not None:
        drawn = stage.drawn
        lines.append(
            f"   draws {drawn.answers:,} answers of at most {drawn.max_new_tokens:,} tokens to"
            f" {drawn.prompts:,} prompts"
        )
    if stage.counts is not None:
        counts = stage.counts
        lines.append(
            f"   {counts.rows:,} rows, {counts.tokens:,} tokens"
            f" ({counts.trained_tokens:,} trained on, longest row {counts.longest:,}),"
            f" {counts.steps:,} steps"
        )
    if stage.evaluations is not None:
        scored = stage.evaluations
        answers = f", {scored.with_answers:,} of them with answers" if scored.with_answers else ""
        lines.append(
            f"   scored during training on {scored.rows:,} rows, {scored.times:,} times{answers}"
        )
    lines += [f"   note: {remark}" for remark in stage.remarks]
    if not stage.total_parameters:
        return prose("\n".join(lines))
    kinds = list(dict.fromkeys(kind for peak in stage.peaks for kind in peak.by_kind))
    rows = [
        (peak.phase, *(_size(peak.by_kind.get(kind, 0)) for kind in kinds), _size(peak.total))
        for peak in stage.peaks
    ]
    return prose("\n".join(lines)) + "\n" + table(("peak of phase", *kinds, "in all"), rows)


def _writes(found: RecipePlan) -> str:
    recipe = found.recipe
    rows = [
        (f"  {path}" + (f", in each of {stage.rounds} rounds" if stage.rounds > 1 else ""),
         _size(size * stage.rounds))
        for stage in found.stages
        for path, size in stage.files
    ]  # fmt: skip
    folder = f"{recipe.output_dir}/{recipe.name}/<time>-<hash>"
    small = "  recipe.yaml, resolved.yaml, run.json, lock.json, log.txt, metrics and samples"
    return table((f"writes {folder}", "about"), [*rows, (small, "small")])


def _time(verdict: Verdict) -> str:
    """Return a table of each stage's time, with its interval and where it comes from."""
    time = verdict.time
    if time is None:
        said = (
            "name the card for an estimate, such as --gpu H100"
            if not verdict.memory.in_ram
            else "--measure 120 takes a few real steps, for two minutes at most"
        )
        return prose(f"time: not known here, as no run of this shape is in this folder; {said}")
    kinds = _kinds(time)
    rows = [
        (
            stage.stage,
            *(_interval(stage.parts[kind]) if kind in stage.parts else "-" for kind in kinds),
            "not known" if stage.lacks else _interval(stage.whole),
            stage.source,
        )
        for stage in time.stages
    ]
    known = {stage.stage for stage in time.stages}
    lost = [stage.name for stage in verdict.plan.stages if stage.name not in known]
    lines = [table(("time of stage", *kinds, "in all", "by"), rows)]
    if time.whole is not None and len(time.stages) > 1:
        lines.append(f"in all: {_interval(time.whole)}")
    if lost:
        lines.append(prose(f"not known: {', '.join(lost)}"))
    return "\n".join([*lines, prose(f"  {time.remark}")])


def _kinds(time: PlanTime) -> list[str]:
    return list(dict.fromkeys(kind for stage in time.stages for kind in stage.parts))


def _interval(seconds: Seconds) -> str:
    return f"{_about(seconds.likely)} ({_about(seconds.low)} to {_about(seconds.high)})"


def _about(seconds: float) -> str:
    """Return a duration in the unit that people would name it in."""
    for unit, size, limit in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 72)):
        if seconds < size * limit:
            value = seconds / size
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{seconds / 86_400:.1f} days"


def _fits(verdict: Verdict) -> str:
    from llmft.planning.memory_tracker import FRAGMENTS

    memory, worst = verdict.memory, verdict.plan.worst
    reserved = "Python and its libraries" if memory.in_ram else "the GPU's own context"
    if memory.is_shared:
        reserved = "its context and what other programs hold"
    each = "each " if verdict.plan.processes.several else ""
    nccl = f" and {_size(memory.for_nccl)} for NCCL, assumed" if memory.for_nccl else ""
    said = (
        f"{worst.name} needs {_size(worst.peak.total)} in its phase '{worst.peak.phase}';"
        f" {each}{memory.name} has room for {_size(memory.room)}"
        f" ({_size(memory.total)} less {_size(memory.reserved)} for {reserved}{nccl})"
    )
    if fragments := worst.peak.by_kind.get(FRAGMENTS, 0):
        said += (
            f"\n  {_size(fragments)} of it are fragments: what torch's allocator holds around"
            " tensors and cannot give back, as simulated"
        )
    if memory.in_ram:
        said += (
            "\n  on Linux malloc may keep as much again, and more, of what is freed;"
            " MALLOC_MMAP_THRESHOLD_=131072 in the environment has it given back, and costs time"
        )
    if verdict.fits:
        return f"fits: {said}"
    if verdict.fits is None:
        lost = ", ".join(s.name for s in verdict.plan.stages if not s.followed)
        return f"not all of {lost} is counted; what is counted fits: {said}"
    lines = [f"does not fit: {said}"]
    for change in verdict.changes:
        end = "fits" if change.fits else "does not fit yet"
        lines.append(f"  {change.stage}: {change.setting} -> {_size(change.peak)}, {end}")
    if not verdict.changes or not verdict.changes[-1].fits:
        lines.append("  no change of settings makes it fit: use a smaller model or more memory")
    return "\n".join(lines)


def _filled(verdict: Verdict, one: Filling, time: PlanTime | None) -> str:
    """Return what a budget of tokens would change."""
    said = (
        f"fuller passes: {one.stage}: train.per_device_train_tokens: {one.tokens} has a step's rows"
        f" in {one.passes:.1f} passes in place of {one.before:.1f}, and needs {_size(one.peak)}"
    )
    before, after = (
        next((stage for stage in found.stages if stage.stage == one.stage), None) if found else None
        for found in (verdict.time, time)
    )
    if before is None or after is None:
        return said
    return f"{said}; {_about(after.whole.likely)} in place of {_about(before.whole.likely)}"


def _size(size: float) -> str:
    if not size:
        return "-"
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
