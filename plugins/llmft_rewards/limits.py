"""A limit on what reading one answer may take, which a policy may write to take for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from llmft.toolkit import TimeUp, time_limit

LONGEST = 5.0
"""Seconds; math-verify's own limit."""

Found = TypeVar("Found")


def limited(step: Callable[[], Found]) -> Found | None:
    """Return what a step returns; None where it takes too long."""
    try:
        with time_limit(LONGEST):
            return step()
    except TimeUp:
        return None
