"""A recipe: what a user writes, as pydantic models."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializeAsAny

from llmft.api import AdapterConfig, AlignmentConfig, DatasetConfig, TrackerConfig
from llmft.settings import (
    EvaluateSettings,
    Line,
    ModelSource,
    Name,
    PushToHub,
    Settings,
    TrainSettings,
)


class Stage(Settings):
    """One training run of a recipe."""

    name: Name = Field(description="what later stages and the run folder call this stage")
    start_from: Line | None = Field(
        None, description="an earlier stage whose adapter this one goes on training"
    )
    adapter: SerializeAsAny[AdapterConfig] | None = Field(
        None, description="what is trained; may be left out where start_from names a stage"
    )
    alignment: SerializeAsAny[AlignmentConfig] = Field(description="what is optimised")
    data: SerializeAsAny[DatasetConfig] = Field(description="the rows")
    train: TrainSettings = Field(default_factory=TrainSettings, description="how it trains")
    evaluate: EvaluateSettings | None = Field(
        None, description="how it is judged before and after; default: not at all"
    )


class Recipe(Settings):
    """The whole file."""

    recipe: Literal[1] = Field(description="the version of the recipe format")
    name: Name = Field(description="what the run is called; its folder is <output_dir>/<name>/...")
    seed: int = Field(17, ge=0, le=2**32 - 1, description="the seed of every random choice")
    output_dir: Line = Field("runs", description="the folder under which run folders are made")
    model: ModelSource = Field(description="the base model")
    stages: list[Stage] = Field(min_length=1, max_length=100, description="run in this order")
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

    def resolved(self) -> dict[str, Any]:
        """Return the recipe with every default written out, as plain data."""
        return self.model_dump(mode="json")
