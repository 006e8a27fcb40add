"""A plugin that times a stage of PPO or GRPO from outside, as anybody could write it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clock import Clock

from llmft.api import Field, Progress, StageContext, Tracker, TrackerConfig, hookimpl

_clock = Clock()


class Stopwatch(Tracker["Stopwatch.Config"]):
    """Writes the seconds of a stage, what its steps reached, and the process's memory."""

    method = "ppo_stopwatch"

    class Config(TrackerConfig):
        """Where the figures go."""

        path: str = Field(max_length=4096, description="the file to write")
        metrics: list[str] = Field(default=["score", "kl"], description="what is noted of a step")

    def progress(self, progress: Progress) -> None:
        """Note a step; after the last, write the file."""
        if progress.phase != "train" or not progress.logged:
            return
        _clock.step({name: progress.metrics[name] for name in self.config.metrics})
        if progress.done == progress.total:
            _clock.stop(Path(self.config.path))


@hookimpl
def llmft_trackers() -> list[type[Stopwatch]]:
    return [Stopwatch]


@hookimpl(wrapper=True)
def llmft_run_stage(stage: Any, context: StageContext) -> Any:
    """Start the clock when models and prompts are ready, and the loop is handed them."""
    fit_online: Any = context.fit_online

    def timed(prompts: Sequence[Any], objective: Any) -> Any:
        _clock.start()
        return fit_online(prompts, objective)

    context.fit_online = timed  # type: ignore[method-assign]
    return (yield)
