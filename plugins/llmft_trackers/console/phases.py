"""How far a phase has come, since when, how long it will take, and when to say so again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmft.api import Progress
from llmft_trackers.console.numbers import duration

SOON, LATE, SHARE = 30.0, 300.0, 0.1
"""A line is printed after SOON seconds where a SHARE of the phase is done, and after LATE ones."""


@dataclass
class Phase:
    """A phase that is under way; times are of a monotonic clock, in seconds.

    began: when it began. first, first_at: units done when it was first heard of, and when that was:
    a run that goes on begins with some.
    """

    began: float
    first: int
    first_at: float
    told: int
    told_at: float
    metrics: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, progress: Progress, now: float, heard: float) -> Phase:
        """Return a phase by the first that is heard of it; heard: when something last was."""
        # The first sign may be the end of the first unit, or of the only one.
        began = now if progress.done == 0 else heard
        return cls(began, progress.done, now, progress.done, began)

    def is_due(self, progress: Progress, now: float) -> bool:
        """Return whether a plain line is due, and take it as printed."""
        waited = now - self.told_at
        enough = progress.total > 0 and progress.done - self.told >= SHARE * progress.total
        if not ((waited >= SOON and enough) or waited >= LATE):
            return False
        self.said(progress, now)
        return True

    def said(self, progress: Progress, now: float) -> None:
        """Note that a line has been printed."""
        self.told, self.told_at = progress.done, now

    def left(self, progress: Progress, now: float) -> str:
        """Return the time left by the pace so far; '' where it is not known yet, and at the end."""
        done, seconds = progress.done - self.first, now - self.first_at
        if done <= 0 or seconds <= 0 or progress.done >= progress.total:
            return ""
        return f"{duration(seconds / done * (progress.total - progress.done))} left"

    def took(self, now: float) -> str:
        """Return how long it has taken."""
        return f"in {duration(now - self.began)}"


def name_of(progress: Progress) -> str:
    """Return the phase's name and its count; one that is not made of units has none."""
    stage = f"[{progress.stage}] {progress.phase}"
    if progress.total <= 1:
        return stage
    return f"{stage} {progress.done:,}/{progress.total:,}"
