"""A recipe: what a user writes, as pydantic models."""

from __future__ import annotations

from typing import Any, Literal, cast

from pydantic import Field, SerializeAsAny

from llmft.api.method_settings import (
    AdapterConfig,
    AlignmentConfig,
    DatasetConfig,
    TaskConfig,
    TrackerConfig,
)
from llmft.api.settings import (
    EvaluateSettings,
    Line,
    ModelSource,
    Name,
    PushToHub,
    Settings,
    TrainSettings,
)


class Stage(Settings):
    """One step of a recipe: a training run, or a task that makes rows for others."""

    name: Name = Field(description="what later stages and the run folder call this stage")
    start_from: Line | None = Field(
        None,
        description="an earlier stage whose adapter this one goes on with",
    )
    adapter: SerializeAsAny[AdapterConfig] | None = Field(
        None, description="what is trained; may be left out where start_from names a stage"
    )
    alignment: SerializeAsAny[AlignmentConfig] | None = Field(
        None, description="what is optimised; a stage has an alignment or a task"
    )
    task: SerializeAsAny[TaskConfig] | None = Field(
        None, description="what is made, where nothing is trained"
    )
    data: SerializeAsAny[DatasetConfig] | None = Field(
        None, description="the rows; a task may need none"
    )
    train: TrainSettings = Field(default_factory=TrainSettings, description="how it trains")
    evaluate: EvaluateSettings | None = Field(
        None, description="how it is judged before and after; default: not at all"
    )

    @property
    def work(self) -> AlignmentConfig | TaskConfig:
        """The settings of what the stage does: its alignment, or its task."""
        return cast("AlignmentConfig | TaskConfig", self.alignment or self.task)

    @property
    def work_kind(self) -> Literal["alignment", "task"]:
        """Which of the two that is."""
        return "alignment" if self.alignment else "task"


class Repeat(Settings):
    """Stages that run several times, each round starting from the last one's policy."""

    stages: list[Line] = Field(
        min_length=1, max_length=100, description="stages of the recipe, one after another"
    )
    rounds: int = Field(2, ge=1, le=100, description="how often they run")


class Recipe(Settings):
    """The whole file."""

    recipe: Literal[1] = Field(description="the version of the recipe format")
    name: Name = Field(description="what the run is called; its folder is <output_dir>/<name>/...")
    seed: int = Field(17, ge=0, le=2**32 - 1, description="the seed of every random choice")
    output_dir: Line = Field("runs", description="the folder under which run folders are made")
    model: ModelSource = Field(description="the base model")
    stages: list[Stage] = Field(min_length=1, max_length=1000, description="run in this order")
    repeat: Repeat | None = Field(
        None, description="stages to run again and again; default: each runs once"
    )
    trackers: list[SerializeAsAny[TrackerConfig]] = Field(
        default_factory=lambda: [TrackerConfig(method="console"), TrackerConfig(method="jsonl")],
        max_length=20,
        description="who is told how training goes",
    )
    plugins: list[Line] = Field(
        default_factory=list,
        max_length=50,
        description="cross-cutting plugins that act in this run",
    )
    push_to_hub: PushToHub | None = Field(
        None, description="send an adapter to the hub after the run; default: nothing is sent"
    )

    def stage(self, name: str) -> Stage:
        """Return the stage of that name; KeyError if there is none."""
        return {stage.name: stage for stage in self.stages}[name]

    def sent_stage(self, asked: PushToHub) -> str:
        """Return the name of the stage whose adapter is sent: 'last' is the last that trains."""
        trained = [stage.name for stage in self.stages if stage.alignment]
        return trained[-1] if asked.stage == "last" and trained else asked.stage

    def resolved(self) -> dict[str, Any]:
        """Return the recipe with every default written out, as plain data."""
        return self.model_dump(mode="json")
