"""A plan: what each stage of a recipe would load, train, take and write."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmft.api import StageRef
from llmft.deep import check_against_model
from llmft.errors import LlmftError, RecipeError
from llmft.notify import Trackers
from llmft.planning.batches import Counts
from llmft.planning.ghost import NoNumbers
from llmft.planning.ledger import ADAPTER, OPTIMIZER, Peak
from llmft.planning.planned import PlannedStage
from llmft.preparing.counting import count_parameters
from llmft.reading.recipe import Loaded
from llmft.recipe import Recipe, Stage
from llmft.registry import Registry
from llmft.saving.earlier import stage_adapter
from llmft.sharing import hub


@dataclass(frozen=True)
class StagePlan:
    """What a stage would do. counts: None where its rows cannot be read from here."""

    name: str
    adapter: str
    alignment: str
    data: str
    inputs: tuple[str, ...]
    produces: str
    trainable_parameters: int
    total_parameters: int
    quantization: str
    counts: Counts | None
    peaks: tuple[Peak, ...]
    files: tuple[tuple[str, int], ...]
    remarks: tuple[str, ...]

    @property
    def peak(self) -> Peak:
        """The phase that takes the most."""
        return max(self.peaks, key=lambda peak: peak.total)


@dataclass(frozen=True)
class RecipePlan:
    """What a whole recipe would do. network: what is fetched, sent or told elsewhere."""

    recipe: Recipe
    stages: tuple[StagePlan, ...]
    network: tuple[str, ...]

    @property
    def worst(self) -> StagePlan:
        """The stage that takes the most memory."""
        return max(self.stages, key=lambda stage: stage.peak.total)


def plan_recipe(loaded: Loaded, registry: Registry, *, in_ram: bool = True) -> RecipePlan:
    """Return a recipe's plan; no weight is loaded, and nothing stays written.

    in_ram: the model is trained in the machine's own memory. Raises what a run would raise before
    its first step: RecipeError for what does not fit the model, DataError for bad rows.
    """
    if faults := check_against_model(loaded, registry):
        raise RecipeError.of(faults)
    recipe = loaded.recipe
    stages = [plan_stage(recipe, stage, registry, in_ram=in_ram) for stage in recipe.stages]
    return RecipePlan(recipe, tuple(stages), tuple(_network(recipe)))


def plan_stage(recipe: Recipe, stage: Stage, registry: Registry, *, in_ram: bool) -> StagePlan:
    """Return one stage's plan."""
    with tempfile.TemporaryDirectory() as scratch:  # for what a method keeps beside its run
        planned = PlannedStage(
            recipe,
            stage,
            folder=Path(scratch),
            adapter=stage_adapter(recipe, stage, registry),
            alignment=registry.method("alignment", stage.alignment.method)(stage.alignment),
            dataset=registry.method("dataset", stage.data.method)(stage.data),
            registry=registry,
            trackers=Trackers([]),
        )
        planned.begin(in_ram=in_ram)
        trainable, total = _compute(planned)
    ledger = planned.ledger
    bits = {"load_in_4bit": "4-bit", "load_in_8bit": "8-bit"}
    stored = next((said for key, said in bits.items() if planned.load_options.get(key)), "")
    return StagePlan(
        name=stage.name,
        adapter=planned.adapter.method,
        alignment=planned.alignment.method,
        data=planned.dataset.method,
        inputs=tuple(_inputs(stage)),
        produces=planned.alignment.produces,
        trainable_parameters=trainable,
        total_parameters=total,
        quantization=stored,
        counts=planned.counts,
        peaks=tuple(ledger.peaks),
        files=tuple(_files(stage, ledger.peaks, planned.counts)),
        remarks=(*planned.notes, *planned.remarks),
    )


def _compute(planned: PlannedStage) -> tuple[int, int]:
    """Let the stage's methods work without numbers, and return (trainable, total) parameters."""
    ledger = planned.ledger
    ledger.begin("load")
    try:
        trainable, total = count_parameters(planned.model)
    except LlmftError:
        raise
    except Exception as error:  # a plugin's own code, met with tensors that it never sees in a run
        planned.remark(
            f"'{planned.adapter.method}' cannot be attached without weights ({_said(error)}):"
            " its parameters and everything after loading are not counted"
        )
        total = planned.count_base()
        ledger.close()
        return 0, total
    ledger.begin("prepare")
    try:
        with ledger, NoNumbers():
            planned.alignment.train(planned)
    except LlmftError:
        raise
    except Exception as error:  # as above
        planned.remark(
            f"'{planned.alignment.method}' cannot be followed without weights ({_said(error)}):"
            f" memory after the phase '{ledger.phase}' is not counted"
        )
    ledger.close()
    return trainable, total


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _inputs(stage: Stage) -> list[str]:
    """Return the earlier stages that a stage reads."""
    found = [stage.start_from] if stage.start_from else []
    for name, field in type(stage.alignment).model_fields.items():
        reference = getattr(stage.alignment, name)
        if reference and any(isinstance(mark, StageRef) for mark in field.metadata):
            found.append(reference)
    return found


def _files(stage: Stage, peaks: list[Peak], counts: Counts | None) -> list[tuple[str, int]]:
    """Return the files of a stage's folder that matter, and about how many bytes each has."""

    def most(kind: str) -> int:
        return max((peak.by_kind.get(kind, 0) for peak in peaks), default=0)

    folder = f"stages/{stage.name}"
    files = [(f"{folder}/adapter", most(ADAPTER))]
    if stage.train.save_strategy != "no":
        kept = stage.train.save_total_limit
        if counts is not None:
            kept = min(kept, saves(stage, counts))
        files.append(
            (f"{folder}/checkpoints, {kept} kept", kept * most(ADAPTER) + kept * most(OPTIMIZER))
        )
    return files


def saves(stage: Stage, counts: Counts) -> int:
    """Return how many checkpoints a stage writes in all."""
    from llmft.training.plan import Plan

    return Plan.of(counts.items, stage.train, 0).saves(stage.train)


def _network(recipe: Recipe) -> list[str]:
    """Return what is fetched from elsewhere or sent there."""
    said = hub.remarks(recipe)
    for tracker in recipe.trackers:
        settings: dict[str, Any] = tracker.model_dump(exclude_defaults=True, exclude={"method"})
        shown = ", ".join(f"{key}={value}" for key, value in settings.items())
        said.append(f"tracker {tracker.method}" + (f": {shown}" if shown else ""))
    return said
