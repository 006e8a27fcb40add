"""A recipe: what a user writes, as pydantic models."""

from __future__ import annotations

from typing import Any, Literal, cast

from pydantic import Field, SerializeAsAny

from llmft.api.evaluate_settings import EvaluateSettings, MetricConfig, ScoredTaskConfig
from llmft.api.method_settings import (
    AdapterConfig,
    AlignmentConfig,
    CallbackConfig,
    DatasetConfig,
    TaskConfig,
    TrackerConfig,
)
from llmft.api.model_settings import ModelSource
from llmft.api.push_settings import PushToHub
from llmft.api.settings import Line, Name, Settings
from llmft.api.train_settings import TrainSettings

PEFT = "peft:"
"""How a start from an adapter that llmft did not make begins: peft:FOLDER or peft:ORG/NAME."""


class StartFrom(Settings):
    """The stage that another one starts from, and how."""

    stage: Line = Field(description="an earlier stage, or run:<id>/<stage> of a finished run")
    merge: bool = Field(
        False,
        description="write what it trained into the base's weights, in memory, and train the"
        " stage's own adapter on that",
    )


class Stage(Settings):
    """One step of a recipe: a training run, or a task that makes rows for others."""

    name: Name = Field(description="the stage's name, used by later stages and in the run folder")
    start_from: Line | StartFrom | None = Field(
        None,
        description="an earlier stage whose adapter this stage continues to train; or"
        " {stage: ..., merge: true}: this stage's own adapter stands on what that stage made; or"
        " peft:FOLDER, peft:ORG/NAME or peft:ORG/NAME@REVISION: an adapter that PEFT saved, which"
        " the adapter block describes",
    )
    adapter: SerializeAsAny[AdapterConfig] | None = Field(
        None, description="what is trained; optional if start_from names a stage"
    )
    alignment: SerializeAsAny[AlignmentConfig] | None = Field(
        None, description="what is optimised; a stage has either an alignment or a task"
    )
    task: SerializeAsAny[TaskConfig] | None = Field(
        None, description="what the stage makes, where it trains nothing"
    )
    data: SerializeAsAny[DatasetConfig] | None = Field(
        None, description="the rows; some tasks need none"
    )
    train: TrainSettings = Field(default_factory=TrainSettings, description="how the stage trains")
    seed: int | None = Field(
        None,
        ge=0,
        le=2**32 - 1,
        description="the seed of the order of its rows, of dropout and of sampled answers; default:"
        " the recipe's seed, and in later rounds of repeat one that follows from it",
    )
    evaluate: EvaluateSettings | None = Field(
        None,
        description="how the stage is scored before, after and during training; default: not"
        " scored",
    )
    plugins: list[SerializeAsAny[CallbackConfig]] = Field(
        default_factory=list,
        max_length=20,
        description="what acts after each optimiser step of the stage, such as"
        " {method: ema, decay: 0.999}",
    )

    def own_seed(self, seed: int) -> int:
        """Return the seed of what it draws while it runs. seed: the recipe's."""
        return seed if self.seed is None else self.seed

    @property
    def start(self) -> str | None:
        """The stage that this one starts from, as the recipe names it."""
        return None if self.peft_start is not None else self._named_start

    @property
    def peft_start(self) -> str | None:
        """The folder or hub id of the adapter from elsewhere that it starts from."""
        named = self._named_start
        return named.removeprefix(PEFT) if named is not None and named.startswith(PEFT) else None

    @property
    def _named_start(self) -> str | None:
        return self.start_from.stage if isinstance(self.start_from, StartFrom) else self.start_from

    @property
    def merges_start(self) -> bool:
        """Whether that stage is merged into the base, and a new adapter stands on the result."""
        return isinstance(self.start_from, StartFrom) and self.start_from.merge

    @property
    def metrics(self) -> list[str | MetricConfig]:
        """What it is scored by: as its evaluation says, or its task's own settings."""
        told = self.evaluate or self.task
        return told.metrics if isinstance(told, EvaluateSettings | ScoredTaskConfig) else []

    @property
    def work(self) -> AlignmentConfig | TaskConfig:
        """The settings of what the stage does: its alignment, or its task."""
        return cast("AlignmentConfig | TaskConfig", self.alignment or self.task)

    @property
    def work_kind(self) -> Literal["alignment", "task"]:
        """Which of the two that is."""
        return "alignment" if self.alignment else "task"


class Repeat(Settings):
    """Stages that run several times; each round starts from the previous round's policy."""

    stages: list[Line] = Field(
        min_length=1, max_length=100, description="stages that follow one another in the recipe"
    )
    rounds: int = Field(2, ge=1, le=100, description="how many times they run")


class Recipe(Settings):
    """The whole file."""

    recipe: Literal[1] = Field(description="the version of the recipe format")
    name: Name = Field(description="the run's name; its folder is <output_dir>/<name>/...")
    seed: int = Field(17, ge=0, le=2**32 - 1, description="the seed of all random numbers")
    output_dir: Line = Field("runs", description="the folder that holds the run folders")
    model: ModelSource = Field(description="the base model")
    stages: list[Stage] = Field(
        min_length=1, max_length=1000, description="the stages, in the order in which they run"
    )
    repeat: Repeat | None = Field(
        None, description="stages to run several times; default: each runs once"
    )
    trackers: list[SerializeAsAny[TrackerConfig]] = Field(
        default_factory=lambda: [TrackerConfig(method="console"), TrackerConfig(method="jsonl")],
        max_length=20,
        description="where progress and metrics are reported",
    )
    plugins: list[Line] = Field(
        default_factory=list,
        max_length=50,
        description="plugins that act on every stage of this run",
    )
    push_to_hub: PushToHub | None = Field(
        None, description="upload an adapter to the hub after the run; default: no upload"
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
