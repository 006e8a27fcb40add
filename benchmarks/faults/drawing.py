"""The picture: loss curves with the kills marked, and a heat map of methods and faults, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from xml.sax.saxutils import escape

from curves import Curves
from tally import Tally

WIDTH, PANEL, LEFT = 900, 230, 60
CELL, ROW, NAMES, HEAD = 68, 20, 210, 62


def picture(curves: Sequence[Curves], tally: Tally) -> str:
    """Return the SVG."""
    parts: list[str] = []
    for number, one in enumerate(curves):
        parts += _panel(one, 30 + number * (PANEL + 20))
    top = 60 + len(curves) * (PANEL + 20)
    parts += _heat(tally, top)
    height = top + HEAD + ROW * (len(tally.methods) + 1)
    width = max(WIDTH, NAMES + CELL * len(tally.faults) + 8)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        ' font-family="sans-serif" font-size="11">'
        f'<rect width="{width}" height="{height}" fill="white"/>' + "".join(parts) + "</svg>\n"
    )


def _panel(curves: Curves, top: int) -> list[str]:
    """Draw one pair of curves: thick and pale the straight run, thin and dark the killed one."""
    both = [*curves.straight, *curves.killed]
    low, high = min(both), max(both)
    steps = max(len(curves.straight), len(curves.killed), 2)

    def x(step: float) -> float:
        return LEFT + (step - 1) * (WIDTH - LEFT - 20) / (steps - 1)

    def y(loss: float) -> float:
        return top + 20 + (high - loss) * (PANEL - 50) / ((high - low) or 1)

    def line(losses: Sequence[float], width: float, colour: str) -> str:
        points = " ".join(f"{x(n):.1f},{y(v):.1f}" for n, v in enumerate(losses, start=1))
        style = f'fill="none" stroke="{colour}" stroke-width="{width}"'
        return f'<polyline points="{points}" {style}/>'

    title = f"{curves.name}: {len(curves.kills)} kills; {curves.verdict}"
    parts = [_text(LEFT, top + 8, title, size=13)]
    for step in curves.kills:
        at = x(max(1, step))
        ends = f'x1="{at:.1f}" y1="{top + 20}" x2="{at:.1f}" y2="{top + PANEL - 30}"'
        parts.append(f'<line {ends} stroke="#c22" stroke-dasharray="3 3"/>')
    parts += [line(curves.straight, 6, "#9cc5f0"), line(curves.killed, 1.5, "#123")]
    parts += [_text(8, y(value) + 4, f"{value:.2f}") for value in (low, high)]
    labels = "thick: nothing stopped it; thin: killed and resumed; dashed: a kill"
    return [*parts, _text(LEFT, top + PANEL - 12, f"loss by step, 1 to {steps}. {labels}")]


def _heat(tally: Tally, top: int) -> list[str]:
    title = "share of faults that ended bit-exactly (faults); –: none, or no counterpart"
    parts = [_text(8, top - 6, title, size=13)]
    for number, fault in enumerate(tally.faults):
        head, _, event = fault.partition(": ")
        x = NAMES + number * CELL
        lines = [head, *wrap(event, 11)]
        parts += [_text(x, top + 12 + 12 * n, line) for n, line in enumerate(lines)]
    for row, method in enumerate(tally.methods):
        y = top + HEAD + row * ROW
        parts.append(_text(8, y + 14, method))
        for number, fault in enumerate(tally.faults):
            exact, count = tally.cell(method, fault)
            x = NAMES + number * CELL
            if not count:
                parts.append(_text(x + 28, y + 13, "–"))
                continue
            share = exact / count
            box = f'x="{x}" y="{y}" width="{CELL - 2}" height="{ROW - 2}"'
            parts.append(f'<rect {box} fill="{_colour(share)}"/>')
            parts.append(_text(x + 4, y + 13, f"{100 * share:.0f}% ({count})"))
    return parts


def _colour(share: float) -> str:
    """Return a colour from red over yellow to green, of one lightness."""
    return f"hsl({120 * share:.0f}, 60%, 75%)"


def _text(x: float, y: float, text: str, size: int = 11) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}">{escape(text)}</text>'
