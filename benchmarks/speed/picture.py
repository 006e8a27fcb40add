"""A picture of lines on logarithmic axes, as SVG: no library needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

WIDTH, HEIGHT, MARGIN = 220, 150, 48


def svg(rows: Sequence[dict[str, Any]]) -> str:
    """Return a panel of CPU seconds, and one of peak memory under it, for each axis."""
    panels = []
    for column, row in enumerate(rows):
        for line, (key, unit) in enumerate((("cpu", "CPU s"), ("peak_mb", "peak MB"))):
            at = (column * (WIDTH + MARGIN) + MARGIN, line * (HEIGHT + MARGIN) + MARGIN // 2)
            panels.append(_panel(at, row["axis"], unit, row["sizes"], row[key]))
    width, height = len(rows) * (WIDTH + MARGIN) + MARGIN, 2 * (HEIGHT + MARGIN) + MARGIN // 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        ' font-family="sans-serif" font-size="11">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n'
        + "\n".join(panels)
        + "\n</svg>\n"
    )


def _panel(
    at: tuple[int, int], axis: str, unit: str, sizes: Sequence[float], costs: Sequence[float]
) -> str:
    x0, y0 = at
    across = _scale(sizes, x0 + 8, x0 + WIDTH - 8)
    up = _scale(costs, y0 + HEIGHT - 12, y0 + 16)
    points = [(across(size), up(cost)) for size, cost in zip(sizes, costs, strict=True)]
    path = " ".join(f"{x:.0f},{y:.0f}" for x, y in points)
    parts = [
        f'<rect x="{x0}" y="{y0}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>',
        f'<text x="{x0 + 4}" y="{y0 + 12}">{unit}</text>',
        f'<text x="{x0 + WIDTH / 2}" y="{y0 + HEIGHT + 30}" text-anchor="middle">{axis}</text>',
        f'<polyline points="{path}" fill="none" stroke="#1f77b4" stroke-width="2"/>',
    ]
    for (x, y), size, cost in zip(points, sizes, costs, strict=True):
        parts += [
            f'<circle cx="{x:.0f}" cy="{y:.0f}" r="3" fill="#1f77b4"/>',
            f'<text x="{x:.0f}" y="{y - 6:.0f}" text-anchor="middle">{_short(cost)}</text>',
            f'<text x="{x:.0f}" y="{y0 + HEIGHT + 14}" text-anchor="middle">{_short(size)}</text>',
        ]
    return "\n".join(parts)


def _scale(values: Sequence[float], low: float, high: float) -> Any:
    """Return a function from a value to a place, logarithmic; one decade at least is shown."""
    least, most = math.log(min(values)), math.log(max(values))
    middle, half = (least + most) / 2, max(most - least, math.log(10)) / 2
    return lambda value: low + (high - low) * (math.log(value) - middle + half) / (2 * half)


def _short(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
