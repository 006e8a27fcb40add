"""Stages of earlier runs for a smoke run to go on from: saved as the real ones are, untrained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmft.api import StageResult
from llmft.engine.stage import StageRunner
from llmft.engine.trackers import Trackers
from llmft.modeling.base_model import BaseModel
from llmft.recipes.binding import RESOLVED
from llmft.recipes.job import Job
from llmft.recipes.references import ANOTHER_RUN, references
from llmft.runs import artifacts
from llmft.runs.provenance import model_hashes
from llmft.runs.run_folder import RUN, resolved_yaml
from llmft.runs.upstream import upstream_folder
from llmft.system import fsio


def make_upstream_runs(
    job: Job,
    runs: Path,
    rows: int,
    small: Callable[[Job], Job],
) -> list[str]:
    """Write stand-ins for the stages of earlier runs that a recipe names, under their runs' ids.

    What such a stage trained becomes an untrained adapter of the same settings, saved by the same
    code; of rows that it made, the first are copied. runs: the smoke run's output_dir. rows: how
    many are copied. small: makes a recipe fit the tiny model.
    Returns what a person should know. Raises CheckpointError where such a stage is not there.
    """
    named: dict[Path, list[Path]] = {}
    for reference in references(job.written):
        if reference.is_of_another_run:
            bound = job.written_stages[reference.stage]
            stage = upstream_folder(bound.upstream[reference.target], Path())
            stages = named.setdefault(stage.parent.parent, [])
            stages += [stage] if stage not in stages else []
    return [
        note
        for run, stages in named.items()
        for note in _tiny_run(stages, runs / "earlier" / run.name, job, rows, small)
    ]


def _tiny_run(
    stages: Sequence[Path],
    place: Path,
    job: Job,
    rows: int,
    small: Callable[[Job], Job],
) -> list[str]:
    for stage in stages:
        with fsio.disk_errors(place):
            (place / "stages" / stage.name).mkdir(parents=True)
    names = [stage.name for stage in stages]
    fsio.write_json(place / RUN, {"run_id": place.name, "stages": names, "smoke": True})
    made = [stage for stage in stages if (stage / artifacts.ROWS).is_file()]
    trained = [stage.name for stage in stages if stage not in made]
    for stage in made:
        _copy_rows(stage, place / "stages" / stage.name, rows)
    notes = [f"the first rows of '{place.name}/{stage.name}' stand in for all" for stage in made]
    if trained:
        other = job.load(stages[0].parent.parent / RESOLVED)
        fsio.write_json(place / "recipe.yaml", _of_these(other, trained, job))
        tiny = small(job.load(place / "recipe.yaml"))
        fsio.write_text(place / RESOLVED, resolved_yaml(tiny.recipe))
        base = BaseModel(tiny.recipe.model)
        model = {"path": tiny.recipe.model.path, "sha256": model_hashes(base)}
        fsio.write_json(place / "lock.json", {"model": model})
        for name in trained:
            method = _save_untrained(tiny, base, name, place)
            notes.append(f"an untrained {method} stands in for '{place.name}/{name}'")
    return notes


def _copy_rows(stage: Path, place: Path, rows: int) -> None:
    with (stage / artifacts.ROWS).open(encoding="utf-8") as lines:
        some = [line for line, _ in zip(lines, range(rows), strict=False)]
    fsio.write_text(place / artifacts.ROWS, "".join(some))
    produces = artifacts.result_of(stage)["produces"]
    artifacts.save_stage(place, place.parent.parent.name, (), None, StageResult(produces))


def _of_these(other: Job, names: Sequence[str], job: Job) -> dict[str, Any]:
    """Return a recipe of some stages of another run, on this recipe's model, each by itself."""
    whole = other.recipe.resolved()
    for reference in references(other.recipe):  # what stays unread may be missing
        if not reference.is_of_another_run:
            block: Any = whole
            for key in reference.path[:-1]:
                block = block[key]
            block[reference.path[-1]] = f"{ANOTHER_RUN}unread/{reference.target}"
    stages = [stage for stage in whole["stages"] if stage["name"] in names]
    for stage in stages:
        adapter = other.stage(stage["name"]).model_adapter
        assert adapter is not None  # the stage trained it
        stage |= {"start_from": None, "adapter": adapter.config.model_dump(mode="json")}
    model = job.written.model.model_dump(mode="json")
    kept = {key: whole[key] for key in ("recipe", "name", "seed")}
    return {**kept, "model": model, "stages": stages}


def _save_untrained(job: Job, base: BaseModel, name: str, run: Path) -> str:
    """Write what a stage would leave before its first step, and return its adapter's method."""
    folder = run / "stages" / name
    context = StageRunner(
        job, job.stage(name), base, run=run, folder=folder, dataset=None, trackers=Trackers([])
    )
    _ = context.models.model  # attaches the adapter, and what the alignment adds
    context.save(StageResult(context.work.produces))
    return str(context.models.adapter.method)
