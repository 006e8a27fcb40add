"""Curves as inline SVG: points scaled into a box, with ticks that a person would choose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 420, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 10, 10, 26
_MOST = 400
"""Points of a line at most: more than a screen has columns for it shows nothing more."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Curve:
    """A drawing of lines over steps. lines: names with SVG's list of points, `x,y x,y ...`.

    last: what the first line ends at, in words.
    """

    name: str
    lines: tuple[tuple[str, str], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    told: str


def curve(name: str, lines: Sequence[tuple[str, Points]]) -> Curve:
    """Return a drawing of one metric; each line has at least one point."""
    xs = [x for _, points in lines for x, _ in points]
    ys = [y for _, points in lines for _, y in points]
    x_low, x_high = _widened(min(xs), max(xs))
    y_low, y_high = _rounded(*_widened(min(ys), max(ys)))

    def place(x: float, y: float) -> str:
        return f"{_x(x, x_low, x_high):.1f},{_y(y, y_low, y_high):.1f}"

    drawn = tuple(
        (label, " ".join(place(x, y) for x, y in thinned(points))) for label, points in lines
    )
    told = "; ".join(
        f"{label}: from {number(points[0][1])} at step {points[0][0]:g}"
        f" to {number(points[-1][1])} at step {points[-1][0]:g}"
        for label, points in lines
    )
    marks = ticks(y_low, y_high, 4)
    return Curve(
        name,
        drawn,
        tuple(Tick(_x(x, x_low, x_high), f"{x:g}") for x in ticks(x_low, x_high, 5)),
        tuple(
            Tick(_y(y, y_low, y_high), text) for y, text in zip(marks, numbers(marks), strict=True)
        ),
        told,
    )


def thinned(points: Points) -> Points:
    """Return at most so many points as can be seen: of each stretch, its lowest and highest."""
    if len(points) <= _MOST:
        return points
    size = math.ceil(len(points) / (_MOST / 2))
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        ends = {
            min(part, key=lambda point: point[1]),
            max(part, key=lambda point: point[1]),
        }
        kept += sorted(ends)
    return kept


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return about so many round numbers between two bounds."""
    step = _step(low, high, count)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def numbers(values: Sequence[float]) -> list[str]:
    """Return the numbers of an axis: all but 0 with an exponent where one has any."""
    told = [number(value) for value in values]
    if any("e" in text for text in told):
        told = [_exponent(value) if value else "0" for value in values]
    return told


def number(value: float) -> str:
    """Return a number in few digits."""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-4):
        return _exponent(value)
    return f"{value:.4g}"


def _exponent(value: float) -> str:
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")


def _widened(low: float, high: float) -> tuple[float, float]:
    if high > low:
        return low, high
    room = abs(low) * 0.1 or 1.0
    return low - room, high + room


def _rounded(low: float, high: float) -> tuple[float, float]:
    """Return bounds that stand on ticks."""
    step = _step(low, high, 4)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def _step(low: float, high: float, count: int) -> float:
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)


def _x(value: float, low: float, high: float) -> float:
    return _LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)


def _y(value: float, low: float, high: float) -> float:
    return HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)
