"""The hooks. A plugin implements those it needs, marked with `llmft.api.hookimpl`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from llmft.api import (
        Adapter,
        Alignment,
        Callback,
        Dataset,
        MetricFunction,
        Optimizer,
        RewardFunction,
        Schedule,
        StageContext,
        StageResult,
        Task,
        Tracker,
    )
    from llmft.recipes.recipe import Stage

hookspec = pluggy.HookspecMarker("llmft")


@hookspec
def llmft_adapters() -> list[type[Adapter[Any]]]:  # type: ignore[empty-body]
    """Return the adapter classes that this plugin offers."""


@hookspec
def llmft_alignments() -> list[type[Alignment[Any]]]:  # type: ignore[empty-body]
    """Return the alignment classes that this plugin offers."""


@hookspec
def llmft_tasks() -> list[type[Task[Any]]]:  # type: ignore[empty-body]
    """Return the task classes that this plugin offers."""


@hookspec
def llmft_rewards() -> list[type[RewardFunction[Any]]]:  # type: ignore[empty-body]
    """Return the reward function classes that this plugin offers."""


@hookspec
def llmft_datasets() -> list[type[Dataset[Any]]]:  # type: ignore[empty-body]
    """Return the dataset classes that this plugin offers."""


@hookspec
def llmft_optimizers() -> list[type[Optimizer[Any]]]:  # type: ignore[empty-body]
    """Return the optimiser classes that this plugin offers."""


@hookspec
def llmft_schedules() -> list[type[Schedule[Any]]]:  # type: ignore[empty-body]
    """Return the learning-rate schedule classes that this plugin offers."""


@hookspec
def llmft_callbacks() -> list[type[Callback[Any]]]:  # type: ignore[empty-body]
    """Return the callback classes that this plugin offers."""


@hookspec
def llmft_metrics() -> list[type[MetricFunction[Any]]]:  # type: ignore[empty-body]
    """Return the metric classes that this plugin offers."""


@hookspec
def llmft_trackers() -> list[type[Tracker[Any]]]:  # type: ignore[empty-body]
    """Return the tracker classes that this plugin offers."""


@hookspec(firstresult=True)
def llmft_run_stage(stage: Stage, context: StageContext) -> StageResult:  # type: ignore[empty-body]
    """Run one stage. The engine's own implementation comes last; wrap it to time, cache or retry.

    A plugin that implements this acts only in recipes that name it under `plugins:`.
    """
