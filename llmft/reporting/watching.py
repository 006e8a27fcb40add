"""How a run goes, as its folder tells it now. Imports no torch."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmft.reporting.curves import Points, number
from llmft.reporting.run_facts import RunFacts, StageFacts, run_facts
from llmft.system.plain_files import read_small

PROGRESS = "progress.json"
_BARS, _PLAIN = "▁▂▃▄▅▆▇█", "_.-=+*#@"
_FIRST = (
    "loss", "learning_rate", "grad_norm", "reward", "kl", "rewards/accuracies", "rewards/margins",
    "accuracy", "entropy", "length", "tokens_per_second",
)  # fmt: skip
_MOST_CURVES = 12
_YEARS = 1e9  # seconds


@dataclass(frozen=True)
class Phase:
    """What a run does. left: the seconds until the phase ends, by its pace; None: not known.

    total: units of the phase; one that is not made of units has 1.
    """

    stage: str
    name: str
    done: int
    total: int
    left: float | None
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Watched:
    """A run at a moment. phase: what it does; None where it does not run, or tells none."""

    facts: RunFacts
    phase: Phase | None

    @property
    def runs(self) -> bool:
        """Whether it still runs."""
        return self.facts.state == "running"

    @property
    def stages(self) -> tuple[StageFacts, ...]:
        """The stages that have something to show, the current one alone while it trains."""
        if self.phase is not None:
            named = tuple(s for s in self.facts.stages if s.name == self.phase.stage and s.curves)
            if named:
                return named
        return tuple(stage for stage in self.facts.stages if stage.curves)


def look(folder: Path, now: float | None = None) -> Watched:
    """Return how a run goes. now: seconds since the epoch. Raises as `run_facts` does."""
    facts = run_facts(folder)
    phase = _phase(folder, time.time() if now is None else now)
    return Watched(facts, phase if facts.state == "running" else None)


def shown_curves(stage: StageFacts) -> list[tuple[str, Points]]:
    """Return the curves that say how training goes, those that say most first."""
    names = [name for name in _FIRST if name in stage.curves]
    names += sorted(name for name in stage.curves if name not in (*_FIRST, "epoch"))
    return [(name, stage.curves[name]) for name in names[:_MOST_CURVES]]


def sparkline(points: Points, width: int, *, plain: bool = False) -> str:
    """Return a curve as one line of so many characters at most; its lowest value is the lowest bar.

    Each character is the mean of a stretch of the points. plain: in ASCII.
    """
    levels = _PLAIN if plain else _BARS
    count = min(width, len(points))
    means = []
    for at in range(count):
        part = points[at * len(points) // count : (at + 1) * len(points) // count]
        means.append(math.fsum(value / len(part) for _, value in part))
    low, high = min(means), max(means)
    if not high > low:
        return levels[0] * count
    top = len(levels) - 1
    # Halved: the difference of two numbers can be infinite.
    return "".join(levels[round((m / 2 - low / 2) / (high / 2 - low / 2) * top)] for m in means)


def told(points: Points) -> str:
    """Return where a curve begins, and where it is."""
    return f"{number(points[0][1])} -> {number(points[-1][1])}"


def scores_told(stage: StageFacts) -> str:
    """Return a finished stage's scores, before and after."""
    result = stage.result or {}
    before, after = result.get("before") or {}, result.get("after") or {}
    return ", ".join(
        f"{name} {number(before[name])} -> {number(value)}"
        if before.get(name) is not None
        else f"{name} {number(value)}"
        for name, value in after.items()
    )


def _phase(folder: Path, now: float) -> Phase | None:
    """Return what a run wrote of its phase; None where there is nothing, or something else."""
    try:
        found: Any = json.loads(read_small(folder / PROGRESS) or "null")
        stage, name = found["stage"], found["phase"]
        done, total, first = (_count(found[key]) for key in ("done", "total", "first"))
        began, at = (_finite(found[key]) for key in ("began", "at"))
        metrics = {str(k): _finite(v) for k, v in (found.get("metrics") or {}).items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if not (isinstance(stage, str) and isinstance(name, str)):
        return None
    left = None
    if done > first and total > done and at > began:
        left = max((at - began) / (done - first) * (total - done) - max(now - at, 0.0), 0.0)
        left = left if left < _YEARS else None  # what comes of numbers that are no times
    return Phase(stage, name, done, total, left, metrics)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError("no count")
    return value


def _finite(value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e300:
        raise ValueError("no number")
    return float(value)


def finished_stages(facts: RunFacts) -> Sequence[StageFacts]:
    """Return the stages that are done."""
    return [stage for stage in facts.stages if stage.result is not None]
