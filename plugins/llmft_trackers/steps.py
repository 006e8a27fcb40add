"""Which step of its stage a number belongs to, for trackers whose axis is the stage's own steps."""

from __future__ import annotations

from llmft.api import Progress, StageInfo


class StageSteps:
    """The last step of each stage: a run that goes on after its last step logs none."""

    def __init__(self) -> None:
        self._done: dict[str, int] = {}
        self._planned: dict[str, int] = {}

    def started(self, stage: StageInfo) -> None:
        """Note how many steps a stage has."""
        self._planned[stage.name] = stage.steps

    def progressed(self, progress: Progress) -> None:
        """Note a training step, or a step that is logged."""
        if progress.logged or progress.phase == "train":
            self._done[progress.stage] = progress.done

    def scored(self, stage: str, when: str) -> None:
        """Note that a stage was scored; `after`, it has done its last step."""
        if when == "after":
            self._done.setdefault(stage, self._planned.get(stage, 0))

    def of(self, stage: str) -> int:
        """Return the last step of a stage, 0 before the first."""
        return self._done.get(stage, 0)
