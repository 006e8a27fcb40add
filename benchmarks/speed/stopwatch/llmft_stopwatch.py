"""A plugin that times a stage from outside, as anybody could write it.

It gives the adapter the start that all contestants share, undoes the shuffle of the rows, and
writes what its clock says when the stage's last step is done.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from clock import Clock

from llmft.api import Field, Progress, StageContext, Tracker, TrackerConfig, hookimpl

_clock = Clock()


class Stopwatch(Tracker["Stopwatch.Config"]):
    """Writes the seconds of a stage, its losses and the process's memory into a file."""

    method = "stopwatch"

    class Config(TrackerConfig):
        """Where the figures go."""

        path: str = Field(max_length=4096, description="the file to write")

    def progress(self, progress: Progress) -> None:
        """Note a step; after the last, write the file."""
        if progress.phase != "train" or "loss" not in progress.metrics:
            return
        _clock.losses.append(progress.metrics["loss"])
        if progress.done == progress.total:
            _clock.stop(Path(self.config.path))


@hookimpl
def llmft_trackers() -> list[type[Stopwatch]]:
    return [Stopwatch]


@hookimpl(wrapper=True)
def llmft_run_stage(stage: Any, context: StageContext) -> Any:
    """Start the clock when the rows are encoded and the model is there."""
    from model_folder import broadcast_parameters

    broadcast_parameters(context.models.model)

    def timed(encode: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        def encoded(rows: Any) -> list[Any]:
            items = _in_order(encode(rows), context)
            _clock.start()
            return items

        return encoded

    data: Any = context.data
    data.encode = timed(data.encode)
    data.encode_pairs = timed(data.encode_pairs)
    return (yield)


def _in_order(items: list[Any], context: Any) -> list[Any]:
    """Return the items placed so that the shuffled plan takes them in the order of the file."""
    from llmft.training.step_plan import Plan

    plan = Plan.of(len(items), context.train, context.seed)
    places = [i for step in range(plan.steps) for batch in plan.step_batches(step) for i in batch]
    rest = sorted(set(range(len(items))) - set(places))
    placed = list(items)
    for item, place in zip(items, [*places, *rest], strict=True):
        placed[place] = item
    return placed
