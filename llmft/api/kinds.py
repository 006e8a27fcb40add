"""The kinds of method that a plugin can add."""

from __future__ import annotations

from typing import Literal

Kind = Literal[
    "adapter",
    "alignment",
    "task",
    "reward",
    "dataset",
    "optimizer",
    "schedule",
    "callback",
    "metric",
    "tracker",
]
