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
    """What a stage is about to do; counts are known once the model and the rows are loaded."""

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
    """What a stage made: what kind of thing, its scores, and the numbers that describe it."""

    produces: str
    steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
