"""What a stage tells: remarks and progress to the trackers, samples for the run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from llmft.api import Progress
from llmft.engine.trackers import Trackers


class StageLog:
    """The `log` of a StageContext. notes, samples: what was told and kept so far.

    most_samples: how many answers of an evaluation are kept. when: the evaluation that runs.
    """

    def __init__(self, stage: str, trackers: Trackers, most_samples: int = 0) -> None:
        self.stage, self.trackers, self.most_samples = stage, trackers, most_samples
        self.notes: list[str] = []
        self.samples: list[dict[str, Any]] = []
        self.when = "before"
        self._stopping: Callable[[], bool] | None = None

    @contextmanager
    def aside(self, stopping: Callable[[], bool]) -> Iterator[None]:
        """Say no remark twice and keep no sample, for an evaluation in the middle of training.

        stopping: asked at each sign of progress, which raises Stopped once it says so.
        """
        kept, self.samples = self.samples, []
        self._stopping = stopping
        try:
            yield
        finally:
            self.samples, self._stopping = kept, None

    def note(self, text: str) -> None:
        """Tell the trackers a remark that a person should read."""
        if self._stopping is not None and text in self.notes:
            return
        self.notes.append(text)
        self.trackers.note(f"{self.stage}: {text}")

    def progress(self, phase: str, done: int, total: int) -> None:
        """Tell how far a phase has come: the engine's, or one of the method's own."""
        self.trackers.progress(Progress(self.stage, phase, done, total))
        if self._stopping is not None and self._stopping():
            from llmft.modeling.decoding import Stopped

            raise Stopped

    def add_samples(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Keep answers of the evaluation that runs, as many as the recipe asks for."""
        self.samples += [{"when": self.when, **sample} for sample in samples[: self.most_samples]]
