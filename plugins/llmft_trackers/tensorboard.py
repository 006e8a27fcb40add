"""Tracker `tensorboard`: event files in the run folder, for `tensorboard --logdir`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from llmft.api import (
    EnvironmentFault,
    Field,
    Progress,
    RunInfo,
    StageInfo,
    Tracker,
    TrackerConfig,
    hookimpl,
)
from llmft_trackers.steps import StageSteps


class TensorBoard(Tracker[Any]):
    """Write every logged metric to `tensorboard/<stage>` in the run folder, for TensorBoard.

    Each stage is a run there, on its own axis of steps: `train/loss`, `score/...` while it trains,
    `before/...` and `after/...`. Nothing is sent.
    """

    method = "tensorboard"
    contacts = ""

    class Config(TrackerConfig):
        """Settings of the tensorboard tracker."""

        method: Literal["tensorboard"] = Field("tensorboard", description="write event files")
        flush_secs: float = Field(
            30, gt=0, le=86_400, description="the longest that numbers wait before they are written"
        )

        @model_validator(mode="after")
        def _installed(self) -> TensorBoard.Config:
            if find_spec("tensorboardX") is None:  # looked for, not imported: that takes time
                what = "this tracker needs the package tensorboardX, which is not installed"
                raise EnvironmentFault("E206", what, fix="pip install tensorboardX")
            return self

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._folder: Path | None = None
        self._writers: dict[str, Any] = {}
        self._steps = StageSteps()

    def run_started(self, run: RunInfo) -> None:
        """Remember where the run writes."""
        self._folder = run.folder / "tensorboard"

    def stage_started(self, stage: StageInfo) -> None:
        """Remember how many steps there are: a run that goes on after the last one logs none."""
        self._steps.started(stage)

    def progress(self, progress: Progress) -> None:
        """Write the metrics of a logged step."""
        self._steps.progressed(progress)
        if progress.logged:
            self._write(progress.stage, progress.phase, progress.metrics)

    def scored(self, stage: str, when: str, metrics: Mapping[str, float]) -> None:
        """Write the scores, with the last step before them."""
        self._steps.scored(stage, when)
        self._write(stage, when, metrics)

    def stage_finished(self, stage: str, result: Mapping[str, Any]) -> None:
        """Close the stage's file."""
        if stage in self._writers:
            self._writers.pop(stage).close()

    def run_finished(self, summary: Mapping[str, Any]) -> None:
        """Close what a run that failed left open."""
        for stage in list(self._writers):
            self._writers.pop(stage).close()

    def _write(self, stage: str, prefix: str, metrics: Mapping[str, float]) -> None:
        step = self._steps.of(stage)
        for name, value in metrics.items():
            self._writer(stage, step).add_scalar(f"{prefix}/{name}", value, step)

    def _writer(self, stage: str, step: int) -> Any:
        if stage not in self._writers:
            if self._folder is None:
                raise RuntimeError("run_started was never called")
            from tensorboardX import SummaryWriter

            folder = self._folder / stage
            # What a killed run wrote after its last checkpoint is written again: hide it.
            again = step if folder.is_dir() else None
            self._writers[stage] = SummaryWriter(
                str(folder), purge_step=again, flush_secs=self.config.flush_secs
            )
        return self._writers[stage]


@hookimpl
def llmft_trackers() -> list[type[Tracker[Any]]]:
    """Return the tensorboard tracker."""
    return [TensorBoard]
