"""Runs held against the first of them: settings, scores, paired tests, cost. Imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmft.api.errors import DataError, RecipeError
from llmft.reporting import curves
from llmft.reporting.curves import Curve, number
from llmft.reporting.paired import Paired, paired
from llmft.reporting.report import STYLE, duration
from llmft.reporting.run_facts import RunFacts, run_facts
from llmft.runs import artifacts
from llmft.runs.artifacts import PUT_BACK
from llmft.system import fsio
from llmft.system.html_page import html_page
from llmft.system.plain_files import open_to_read

_LARGEST = 2**29
_LONGEST_LINE = 2**26
_UNTOLD = ("output_dir", "trackers", "push_to_hub")
HOW_TO_PAIR = (
    "let llmft evaluate RUN --metrics f1 --output FILE write the answers of each, and compare the"
    " files"
)
_BODY = (Path(__file__).parent / "comparison.html.jinja").read_text("utf-8")
OTHER_ROWS = (
    "scored on other rows than the first, so a difference of the scores may be that of the rows:"
    " hold out the same ones (evaluate.split, or the same data and seed), or let llmft evaluate"
    " score both on one file"
)
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Compared:
    """One thing that is compared: a run, or a file that `llmft evaluate` wrote. facts: a run's."""

    name: str
    facts: RunFacts | None
    rows: Rows

    @property
    def scores(self) -> dict[str, float]:
        """Its scores after training."""
        return {name: value for name, (_, value) in self.facts.scores.items()} if self.facts else {}


@dataclass(frozen=True)
class Comparison:
    """What was found. settings: (key, value in each). tests: of each but the first, against it.

    other_rows: those that were scored on other rows than the first.
    """

    parts: tuple[Compared, ...]
    settings: tuple[tuple[str, tuple[str, ...]], ...]
    scores: tuple[tuple[str, tuple[float | None, ...]], ...]
    tests: tuple[tuple[Paired, ...], ...]
    costs: tuple[tuple[str, tuple[str, ...]], ...]
    other_rows: tuple[str, ...] = ()


def compare(places: Sequence[Path]) -> Comparison:
    """Return how runs, or files of `llmft evaluate`, differ from the first one.

    The paired tests are on the rows that both have answered: all of a file's, and of a run those of
    its last task that scores, or else those whose answers its evaluation kept (`evaluate.samples`).
    Raises RecipeError where there are fewer than two, CheckpointError at what is no run's folder.
    """
    if len(places) < 2:
        raise RecipeError("E090", "there is nothing to compare with", fix="name two runs or more")
    with fsio.as_a_run_wrote(Path(", ".join(map(str, places))), PUT_BACK):
        return _compared(tuple(_part(place) for place in places))


def _compared(parts: tuple[Compared, ...]) -> Comparison:
    flat = [dict(_flat(_told(part.facts.recipe))) if part.facts else None for part in parts]
    keys = list(dict.fromkeys(key for one in flat if one is not None for key in one))
    settings = [
        (key, tuple("" if one is None else one.get(key, "-") for one in flat)) for key in keys
    ]
    names = list(dict.fromkeys(name for part in parts for name in part.scores))
    return Comparison(
        parts,
        tuple((key, values) for key, values in settings if len({v for v in values if v}) > 1),
        tuple((name, tuple(part.scores.get(name) for part in parts)) for name in names),
        tuple(tuple(paired(parts[0].rows, other.rows)) for other in parts[1:]),
        tuple(_costs(parts)),
        tuple(_on_other_rows(parts)),
    )


def _on_other_rows(parts: tuple[Compared, ...]) -> Iterator[str]:
    first, *others = ((part.name, part.facts.scored_rows if part.facts else "") for part in parts)
    yield from (name for name, rows in others if rows and first[1] not in ("", rows))


def _part(place: Path) -> Compared:
    if place.is_file():
        return Compared(place.name, None, _rows_of(place))
    facts = run_facts(place)
    name = f"{facts.name}/{place.resolve().name}"
    for stage in reversed(facts.stages):
        rows = artifacts.stage_folder(place, stage.name) / artifacts.ROWS
        scored = (stage.result or {}).get("produces") == "scores"
        if scored and rows.is_file() and rows.stat().st_size:
            return Compared(name, facts, _rows_of(rows))
    samples = [s for stage in reversed(facts.stages) for s in stage.samples]
    return Compared(name, facts, [s for s in samples if s.get("when") == "after"])


def _rows_of(path: Path) -> Rows:
    fix = "give a file that 'llmft evaluate --output' wrote, or a run's folder"
    found = []
    try:
        with os.fdopen(open_to_read(path), "rb") as file:
            if os.fstat(file.fileno()).st_size > _LARGEST:
                raise DataError("E103", f"'{path}' has more than {_LARGEST:,} bytes", fix=fix)
            while line := file.readline(_LONGEST_LINE):
                if line.strip():
                    row = json.loads(line)
                    found.append({name: row[name] for name in row if name != "answer"})
                    _ = row["prompt"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError("E103", f"'{path}' holds no evaluated rows", fix=fix) from error
    if not found:
        raise DataError("E103", f"'{path}' holds no evaluated rows", fix=fix)
    return found


def _told(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe with its stages by name, without what changes nothing of the result."""
    told = {name: value for name, value in recipe.items() if name not in _UNTOLD}
    told["stages"] = {stage["name"]: stage for stage in recipe.get("stages", [])}
    return told


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value if isinstance(value, str) else json.dumps(value)


def _costs(parts: Sequence[Compared]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name, tell in (
        ("time", lambda run: duration(run.seconds) if run.seconds is not None else ""),
        ("steps", lambda run: f"{sum((s.result or {}).get('steps', 0) for s in run.stages):,}"),
        ("trained parameters", _trained),
        ("device", lambda run: str(run.lock.get("device", ""))),
    ):
        yield name, tuple(tell(part.facts) if part.facts else "" for part in parts)


def _trained(run: RunFacts) -> str:
    key = "trainable_parameters"
    found = [stage.timeline[key] for stage in run.stages if key in stage.timeline]
    return f"{max(found):,}" if found else ""


def page(comparison: Comparison) -> str:
    """Return a comparison as one HTML file, with the curves over each other."""
    names = [part.name for part in comparison.parts]
    with fsio.as_a_run_wrote(Path(", ".join(names)), PUT_BACK):
        drawn = list(_curves(comparison.parts))
    return html_page(
        f"compared: {', '.join(names)}",
        _BODY,
        STYLE,
        names=names,
        settings=comparison.settings,
        scores=[(n, ["" if v is None else f"{v:.4f}" for v in vs]) for n, vs in comparison.scores],
        tests=[
            (name, [(t, told(t)) for t in tests])
            for name, tests in zip(names[1:], comparison.tests, strict=True)
        ],
        costs=comparison.costs,
        curves=drawn,
        width=curves.WIDTH,
        height=curves.HEIGHT,
        number=number,
        how_to_pair=HOW_TO_PAIR,
        other_rows=[f"{name} is {OTHER_ROWS}." for name in comparison.other_rows],
    )


def told(test: Paired) -> str:
    """Return what a paired test says, in words."""
    p = "" if test.p is None else f", McNemar p = {test.p:.3g}"
    better = "a difference" if test.seen else "no difference seen"
    return f"{better}: {test.second - test.first:+.4f} [{test.low:+.4f}, {test.high:+.4f}]{p}"


def _curves(parts: Sequence[Compared]) -> Iterator[Curve]:
    """Yield a drawing of each metric that more than one run has logged in a stage of one name."""
    found: dict[tuple[str, str], list[tuple[str, list[tuple[float, float]]]]] = {}
    for part in parts:
        for stage in part.facts.stages if part.facts else ():
            for metric, points in stage.curves.items():
                if metric != "epoch":
                    found.setdefault((stage.name, metric), []).append((part.name, points))
    for (stage_name, metric), lines in found.items():
        if len(lines) > 1:
            yield curves.curve(f"{stage_name}: {metric}", lines)
