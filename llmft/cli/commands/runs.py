"""`llmft runs [FOLDER]`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmft.cli.commands.output import table
from llmft.reporting.report import duration
from llmft.reporting.run_list import Listed, runs_under


def listed(place: str, name: str, state: str | None, sort: str) -> list[dict[str, Any]]:
    """Return the runs under a folder as plain data."""
    return [_data(run) for run in runs_under(Path(place), name=name, state=state, sort=sort)]


def _data(run: Listed) -> dict[str, Any]:
    facts = run.facts
    return {
        "run": str(run.folder),
        "name": run.name,
        "state": run.state,
        "started": run.started or None,
        "seconds": facts.seconds if facts else None,
        "stages": [s.name for s in facts.stages] if facts else [],
        "work": [s.work for s in facts.stages] if facts else [],
        "scores": {k: {"before": b, "after": a} for k, (b, a) in facts.scores.items()}
        if facts
        else {},
        "fault": run.fault or None,
    }


def as_text(found: list[dict[str, Any]], place: str) -> str:
    """Return the runs as a table."""
    if not found:
        return f"no run in '{place}'"
    rows = [
        (
            run["run"],
            run["state"],
            run["started"] or "",
            "" if run["seconds"] is None else duration(run["seconds"]),
            ", ".join(run["work"]),
            run["fault"] or _scores(run["scores"]),
        )
        for run in found
    ]
    return table(("run", "state", "started", "time", "stages", "scores"), rows)


def _scores(scores: dict[str, dict[str, float | None]]) -> str:
    return ", ".join(f"{name} {_pair(pair)}" for name, pair in scores.items())


def _pair(pair: dict[str, float | None]) -> str:
    before, after = pair["before"], pair["after"]
    return f"{after:.4g}" if before is None else f"{before:.4g} -> {after:.4g}"
