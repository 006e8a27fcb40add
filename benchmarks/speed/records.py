"""Keeps what was measured, a line of JSON for each task, so that tasks can be measured apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def merge(
    old: Sequence[Result], new: Sequence[Result], order: Sequence[str]
) -> tuple[list[Result], list[str]]:
    """Return the newest result of each task, in order, and the names of those dropped.

    An old result is dropped where it was measured on another machine or other libraries than the
    new: one page has one line that says on what it was measured.
    """
    fresh = {result["task"]: result for result in new}
    others = [result for result in old if result["task"] not in fresh]
    kept = [result for result in others if all(_alike(result, each) for each in new)]
    gone = [result["task"] for result in others if result not in kept]
    return sorted([*kept, *fresh.values()], key=lambda result: order.index(result["task"])), gone


def _alike(one: Result, other: Result) -> bool:
    """Say whether two were measured on the same machine, with the same versions."""
    versions = other.get("peers", {})
    same = all(versions.get(name, at) == at for name, at in one.get("peers", {}).items())
    return same and all(one.get(key) == other.get(key) for key in ("stack", "threads"))


def keep(path: Path, new: Sequence[Result], order: Sequence[str]) -> list[Result]:
    """Write new results beside those of other tasks, print what is dropped, and return all."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    merged, gone = merge([json.loads(line) for line in lines], new, order)
    for task in gone:
        print(f"dropped: {task} was measured on another machine or with other libraries")
    path.write_text("".join(json.dumps(result) + "\n" for result in merged), "utf-8")
    return merged
