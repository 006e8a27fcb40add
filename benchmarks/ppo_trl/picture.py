"""The picture: the mean score of each step, of every seed and contestant, as SVG."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

WIDTH, PANEL, LEFT, RIGHT, FOOT = 900, 260, 50, 20, 40
COLOURS = ("#1657b0", "#c2410c", "#e0a100")


def curves(results: list[dict[str, Any]]) -> str:
    """Return the SVG: a panel for each task whose reward means something."""
    shown = [result for result in results if "start" in result]
    parts: list[str] = []
    for number, result in enumerate(shown):
        parts += panel(result, number * PANEL)
    height = len(shown) * PANEL
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        ' font-family="sans-serif" font-size="11">'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>' + "".join(parts) + "</svg>\n"
    )


def panel(result: dict[str, Any], top: int) -> list[str]:
    """Return a task's lines: episodes to the right, score upwards."""
    runs = [
        (colour, [step["score"] for step in run["steps"]])
        for (_, taken), colour in zip(result["taken"].items(), COLOURS, strict=False)
        for run in taken
    ]
    every = [score for _, scores in runs for score in scores]
    low, high = min(every), max(every)
    steps = max(len(scores) for _, scores in runs)

    def x(step: int) -> float:
        return LEFT + step * (WIDTH - LEFT - RIGHT) / max(steps - 1, 1)

    def y(score: float) -> float:
        return top + 24 + (high - score) * (PANEL - 24 - FOOT) / ((high - low) or 1)

    parts = [text(LEFT, top + 14, f"{result['task']}: mean score of a step's answers", 13)]
    for score in (low, high):
        ends = f'x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(score):.1f}" y2="{y(score):.1f}"'
        parts += [f'<line {ends} stroke="#ddd"/>', text(8, y(score) + 4, f"{score:.2f}")]
    for colour, scores in runs:
        points = " ".join(f"{x(n):.1f},{y(v):.1f}" for n, v in enumerate(scores))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
    bottom = top + PANEL - 12
    parts.append(text(LEFT, bottom, f"{result['rollouts']} episodes; a line for each seed"))
    for number, name in enumerate(result["taken"]):
        parts.append(text(LEFT + 300 + 150 * number, bottom, name, 12, COLOURS[number]))
    return parts


def text(x: float, y: float, words: str, size: int = 11, colour: str = "#333") -> str:
    """Return a piece of text."""
    return f'<text x="{x}" y="{y:.1f}" font-size="{size}" fill="{colour}">{escape(words)}</text>'
