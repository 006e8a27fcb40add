"""`llmft compare A B...`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmft.api.shown_text import on_one_line
from llmft.cli.commands.output import table
from llmft.reporting.comparison import HOW_TO_PAIR, OTHER_ROWS, Comparison, compare, page, told
from llmft.system import fsio


def compared(places: Sequence[str], output: str | None) -> Comparison:
    """Return how runs differ. output: a file for the page, which must not be there yet."""
    if output is not None:
        fsio.refuse_overwriting(Path(output))
    found = compare([Path(place) for place in places])
    if output is not None:
        fsio.write_text(Path(output), page(found))
    return found


def as_json(found: Comparison) -> dict[str, Any]:
    """Return a comparison as plain data."""
    names = [part.name for part in found.parts]
    return {
        "compared": names,
        "settings": [{"key": key, "values": list(values)} for key, values in found.settings],
        "scores": {name: list(values) for name, values in found.scores},
        "paired": [
            {
                "run": name,
                "against": names[0],
                "tests": [asdict(t) | {"seen": t.seen} for t in tests],
            }
            for name, tests in zip(names[1:], found.tests, strict=True)
        ],
        "scored_on_other_rows": list(found.other_rows),
        "cost": {name: list(values) for name, values in found.costs},
    }


def as_text(found: Comparison, output: str | None) -> str:
    """Return a comparison as tables."""
    names = [part.name for part in found.parts]
    marks = [chr(ord("A") + n) if n < 26 else str(n) for n in range(len(names))]
    marked = zip(marks, map(on_one_line, names), strict=True)
    parts = ["\n".join(f"{mark}: {name}" for mark, name in marked)]
    if found.scores:
        rows = [
            (name, *("-" if value is None else f"{value:.4f}" for value in values))
            for name, values in found.scores
        ]
        parts.append(table(("score", *marks), rows))
    others = [m for m, name in zip(marks, names, strict=True) if name in found.other_rows]
    if others:
        parts.append(f"note: {', '.join(others)}: {OTHER_ROWS}")
    for mark, tests in zip(marks[1:], found.tests, strict=True):
        if not tests:
            parts.append(f"{mark} and A have answered no row in common: {HOW_TO_PAIR}")
            continue
        rows = [
            (t.metric, str(t.rows), f"{t.first:.4f}", f"{t.second:.4f}", told(t)) for t in tests
        ]
        parts.append(table(("same rows", "rows", "A", mark, f"{mark} less A, 95 %"), rows))
    if found.settings:
        parts.append(table(("setting", *marks), [(key, *vs) for key, vs in found.settings]))
    elif any(part.facts for part in found.parts):
        parts.append("the settings are the same")
    if any(part.facts for part in found.parts):
        parts.append(table(("cost", *marks), [(name, *vs) for name, vs in found.costs]))
    if output:
        parts.append(f"page: {output}")
    return "\n\n".join(parts)
