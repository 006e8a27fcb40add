"""Tables in which the stages of a run stand side by side, the rounds of a repeated one too."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Cells = Mapping[str, str]
WIDTH = 120


def tables(stages: Mapping[str, Mapping[str, Any]], width: int = WIDTH) -> list[str]:
    """Return the lines of a table for each group of stages that are measured by the same metrics.

    stages: by name, `before` and `after` training, and `metrics` of a stage that trains nothing.
    A row is a stage, a column a metric; nothing is shown for a single stage. width: of a line.
    """
    groups: dict[tuple[str, ...], dict[str, Cells]] = {}
    for name, result in stages.items():
        if cells := _cells(result):
            groups.setdefault(tuple(cells), {})[name] = cells
    if sum(map(len, groups.values())) < 2:
        return []
    return [line for rows in groups.values() for line in _table(rows, width)]


def measured(result: Mapping[str, Any]) -> dict[str, float]:
    """Return what a stage that trains nothing has counted."""
    metrics = result.get("metrics") or {}
    return dict(metrics) if not result.get("steps") and not result.get("after") else {}


def plain(value: float) -> str:
    """Return a number as a person reads it: a count without a point."""
    if math.isfinite(value) and value == int(value):
        return f"{int(value):,}"
    return f"{value:.4f}" if abs(value) >= 0.001 or not math.isfinite(value) else f"{value:.2e}"


def _cells(result: Mapping[str, Any]) -> Cells:
    before, after = result.get("before") or {}, result.get("after") or {}
    if after:
        return {
            name: f"{_scored(before[name]) if name in before else '-'} -> {_scored(value)}"
            for name, value in after.items()
        }
    return {name: plain(value) for name, value in measured(result).items()}


def _scored(value: float) -> str:
    if not math.isfinite(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) >= 0.001 or value == 0 else f"{value:.2e}"


def _table(rows: Mapping[str, Cells], width: int) -> Iterator[str]:
    """Yield the lines of a table, cut where it would be too wide; columns of zeros are left out."""
    names = [n for n in next(iter(rows.values())) if any(row[n] != "0" for row in rows.values())]
    first = max(len("stage"), *map(len, rows))
    widths = {n: max(len(n), *(len(row[n]) for row in rows.values())) for n in names}
    for part in _parts(names, widths, width - first):
        yield ""
        yield f"{'stage':{first}}" + "".join(f"  {name:>{widths[name]}}" for name in part)
        for stage, row in rows.items():
            yield f"{stage:{first}}" + "".join(f"  {row[name]:>{widths[name]}}" for name in part)


def _parts(names: Sequence[str], widths: Mapping[str, int], room: int) -> Iterator[list[str]]:
    part: list[str] = []
    for name in names:
        if part and sum(widths[n] + 2 for n in (*part, name)) > room:
            yield part
            part = []
        part.append(name)
    if part:
        yield part
