"""`llmft report RUN`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmft.reporting.report import write_report
from llmft.reporting.run_facts import run_facts
from llmft.system import fsio


def report(run: str, data: str | None) -> dict[str, Any]:
    """Write a run's report into its folder, and return where it is.

    data: a file for the curves as CSV; RecipeError where it is there already.
    """
    if data is not None:
        fsio.refuse_overwriting(Path(data))
    made: dict[str, Any] = {"report": str(write_report(Path(run)))}
    if data is not None:
        fsio.write_text(Path(data), _csv(Path(run)))
        made["data"] = data
    return made


def _csv(run: Path) -> str:
    lines = ["stage,metric,step,value"]
    for stage in run_facts(run).stages:
        for name, points in stage.curves.items():
            lines += [f"{stage.name},{_cell(name)},{x:g},{y!r}" for x, y in points]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return json.dumps(text) if set(text) & set(',"\n') else text


def as_text(made: dict[str, Any]) -> str:
    """Return the answer as lines."""
    return "\n".join(f"{kind}: {path}" for kind, path in made.items())
