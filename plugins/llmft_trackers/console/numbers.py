"""Numbers as a person reads them in a line of progress."""

from __future__ import annotations

import math
from collections.abc import Mapping

FIRST = (
    "reward", "kl", "loss", "rewards/accuracies", "rewards/margins", "accuracy",
    "tokens_per_second",
)  # fmt: skip
"""The metrics that say how training goes, in the order in which they are shown."""


def named(metrics: Mapping[str, float]) -> list[str]:
    """Return each metric with its name, those that say how training goes first."""
    names = [name for name in FIRST if name in metrics]
    names += [name for name in metrics if name not in FIRST]
    return [_named(name, metrics[name]) for name in names]


def _named(name: str, value: float) -> str:
    if name == "tokens_per_second":
        return f"{number(value, 0)} tokens/s"
    return f"{name} {number(value, 2 if name == 'epoch' else 4)}"


def number(value: float, places: int = 4) -> str:
    """Return a number with so many decimal places, or none above a thousand."""
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000 or not places:
        return f"{value:,.0f}"
    tiny = value != 0 and abs(value) < 0.001 and places > 2
    return f"{value:.2e}" if tiny else f"{value:.{places}f}"


def duration(seconds: float) -> str:
    """Return a duration in seconds, or as minutes and hours from a minute on."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
