"""What the training loop counts: over the whole stage, and between two logs."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class LoopReport:
    """What the loop did; `losses` has one number an optimiser step, None where all was skipped.

    skipped: updates left out, as a loss or a gradient was not finite. ended_by: why a callback
    ended it before its last step; '': none did.
    """

    steps: int = 0
    items: int = 0
    seconds: float = 0.0
    losses: list[float | None] = field(default_factory=list)
    skipped: int = 0
    ended_by: str = ""

    @property
    def train_loss(self) -> float:
        """The mean of the steps' losses, as transformers has it; steps without one do not count."""
        taken = [loss for loss in self.losses if loss is not None]
        return math.fsum(taken) / len(taken) if taken else math.nan

    def facts(self) -> dict[str, Any]:
        """Return it as plain data, for a checkpoint."""
        return {name: value for name, value in asdict(self).items() if name != "ended_by"}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Become what it was at a checkpoint."""
        self.steps, self.items = facts["steps"], facts["items"]
        self.seconds, self.losses = facts["seconds"], list(facts["losses"])
        self.skipped = facts.get("skipped", 0)


def means_of(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Return the mean of each metric of (sum, weight); `tokens` is a count, and has none."""
    return {name: s / w for name, (s, w) in sums.items() if name != "tokens" and w}


class Window:
    """Metrics between two logs, as weighted means."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.last_loss = math.nan
        self.since = time.monotonic()

    def add(self, sums: Mapping[str, tuple[float, float]]) -> None:
        """Add each metric's (sum, weight) of one step."""
        for name, (value, weight) in sums.items():
            self.sums[name][0] += value
            self.sums[name][1] += weight
        if "loss" in sums:
            self.last_loss = sums["loss"][0] / sums["loss"][1]

    def means(self, *, clear: bool) -> dict[str, float]:
        """Return the mean of each metric; `tokens` is a count, given per second instead."""
        seconds = max(time.monotonic() - self.since, 1e-9)
        out = means_of({name: (s, w) for name, (s, w) in self.sums.items()})
        if "tokens" in self.sums:
            out["tokens_per_second"] = self.sums["tokens"][0] / seconds
        if clear:
            self.sums.clear()
            self.since = time.monotonic()
        return out

    def pause(self, seconds: float) -> None:
        """Leave out so many seconds just gone, in which nothing was trained."""
        self.since += seconds

    def facts(self) -> dict[str, Any]:
        """Return it as plain data, for a checkpoint."""
        seconds = time.monotonic() - self.since
        last = self.last_loss if math.isfinite(self.last_loss) else None
        return {"sums": dict(self.sums), "last_loss": last, "seconds": seconds}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Become what it was at a checkpoint."""
        self.sums.update({name: list(pair) for name, pair in facts["sums"].items()})
        last = facts["last_loss"]
        self.last_loss = math.nan if last is None else last
        self.since = time.monotonic() - facts["seconds"]
