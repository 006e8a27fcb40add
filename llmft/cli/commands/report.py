"""`llmft report RUN`."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from llmft.api.shown_text import on_one_line
from llmft.reporting.pictures import refuse_existing, write_pictures
from llmft.reporting.report import write_report
from llmft.reporting.run_facts import run_facts
from llmft.system import fsio


def report(run: str, data: str | None, png: str | None = None) -> dict[str, Any]:
    """Write a run's report into its folder, and return where it is.

    data: a file for the curves as CSV. png: a folder for them as PNG. RecipeError where one is
    there already.
    """
    if png is not None:
        refuse_existing(Path(png))
    if data is not None:
        fsio.refuse_overwriting(Path(data))
    made: dict[str, Any] = {"report": str(write_report(Path(run)))}
    if data is not None:
        fsio.write_text(Path(data), _csv(Path(run)))
        made["data"] = data
    if png is not None:
        made["png"] = [str(path) for path in write_pictures(Path(run), Path(png))]
    return made


def _csv(run: Path) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("stage", "metric", "step", "value"))
    for stage in run_facts(run).stages:
        for name, points in stage.curves.items():
            names = _cell(stage.name), _cell(name)
            table.writerows((*names, f"{x:g}", repr(y)) for x, y in points)
    return text.getvalue()


def _cell(name: str) -> str:
    """Return a name as a cell; a spreadsheet would run one that begins as a formula does."""
    shown = on_one_line(name)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown


def as_text(made: dict[str, Any]) -> str:
    """Return the answer as lines."""
    pictures = made.get("png", [])
    lines = [f"{kind}: {path}" for kind, path in made.items() if kind != "png"]
    return "\n".join([*lines, *(f"png: {path}" for path in pictures)])
