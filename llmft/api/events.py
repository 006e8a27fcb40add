"""What happens in a run, as trackers receive it and stages return it. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class RunInfo:
    """The run as trackers see it: its name, its folder and the resolved recipe."""

    name: str
    folder: Path
    recipe: Mapping[str, Any]
    stages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StageInfo:
    """What a stage is about to do; counts are known once the model and the rows are loaded.

    samples_rows: whether its rows are prompts, whose answers are yet to be sampled.
    """

    name: str
    adapter: str
    alignment: str
    trainable_parameters: int
    total_parameters: int
    rows: int
    tokens: int
    trained_tokens: int
    steps: int
    notes: tuple[str, ...] = ()
    samples_rows: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress: `done` of `total` units of a phase, with metrics where there are new ones.

    Two phases are in optimiser steps: `train`, and `score`, which brings the scores of held-out
    rows at a step of training.
    """

    stage: str
    phase: str
    done: int
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    logged: bool = False


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage made: what kind of thing, its scores, and the numbers that describe it.

    scores: under `before`, `after` and `difference` (after - before on the same rows), for each
    metric its `value`, `n` rows and 95 % interval, `low` to `high` (None where there is none).
    generation: the settings that scored answers were generated with, in GenerationConfig's names.
    """

    produces: str
    steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, Mapping[str, float | int | None]]] = field(
        default_factory=dict
    )
    generation: Mapping[str, Any] = field(default_factory=dict)
