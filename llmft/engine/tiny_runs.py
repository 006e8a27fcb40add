"""Stages of earlier runs for a smoke run to go on from: saved as the real ones are, untrained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmft.api import StageResult
from llmft.engine.stage import StageRunner
from llmft.engine.trackers import Trackers
from llmft.recipes.load import Loaded, load_recipe
from llmft.recipes.recipe import Recipe
from llmft.recipes.references import ANOTHER_RUN, references
from llmft.registry.registry import Registry
from llmft.runs import artifacts
from llmft.runs.provenance import model_hashes
from llmft.runs.run_folder import RUN, resolved_yaml
from llmft.runs.upstream import stage_adapter, upstream_stage
from llmft.system import fsio


def make_upstream_runs(
    loaded: Loaded,
    runs: Path,
    rows: int,
    registry: Registry,
    small: Callable[[Loaded], Loaded],
) -> list[str]:
    """Write stand-ins for the stages of earlier runs that a recipe names, under their runs' ids.

    What such a stage trained becomes an untrained adapter of the same settings, saved by the same
    code; of rows that it made, the first are copied. runs: the smoke run's output_dir. rows: how
    many are copied. small: makes a recipe fit the tiny model.
    Returns what a person should know. Raises CheckpointError where such a stage is not there.
    """
    named: dict[Path, list[Path]] = {}
    for reference in references(loaded.written):
        if reference.is_of_another_run:
            stage = upstream_stage(reference.target, Path(), loaded.recipe)
            stages = named.setdefault(stage.parent.parent, [])
            stages += [stage] if stage not in stages else []
    return [
        note
        for run, stages in named.items()
        for note in _tiny_run(stages, runs / "earlier" / run.name, loaded, rows, registry, small)
    ]


def _tiny_run(
    stages: Sequence[Path],
    place: Path,
    loaded: Loaded,
    rows: int,
    registry: Registry,
    small: Callable[[Loaded], Loaded],
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
        earlier = load_recipe(stages[0].parent.parent / "resolved.yaml", registry).recipe
        fsio.write_json(place / "recipe.yaml", _of_these(earlier, trained, loaded, registry))
        recipe = small(load_recipe(place / "recipe.yaml", registry)).recipe
        fsio.write_text(place / "resolved.yaml", resolved_yaml(recipe))
        base = {"path": recipe.model.path, "sha256": model_hashes(recipe.model.path)}
        fsio.write_json(place / "lock.json", {"model": base})
        for name in trained:
            method = _save_untrained(recipe, name, place, registry)
            notes.append(f"an untrained {method} stands in for '{place.name}/{name}'")
    return notes


def _copy_rows(stage: Path, place: Path, rows: int) -> None:
    with (stage / artifacts.ROWS).open(encoding="utf-8") as lines:
        some = [line for line, _ in zip(lines, range(rows), strict=False)]
    fsio.write_text(place / artifacts.ROWS, "".join(some))
    produces = artifacts.result_of(stage)["produces"]
    artifacts.save_stage(place, place.parent.parent.name, (), None, StageResult(produces))


def _of_these(
    earlier: Recipe, names: Sequence[str], loaded: Loaded, registry: Registry
) -> dict[str, Any]:
    """Return a recipe of some stages of an earlier run, on this recipe's model, each by itself."""
    whole = earlier.resolved()
    for reference in references(earlier):  # what stays unread may be missing
        if not reference.is_of_another_run:
            block: Any = whole
            for key in reference.path[:-1]:
                block = block[key]
            block[reference.path[-1]] = f"{ANOTHER_RUN}unread/{reference.target}"
    stages = [stage for stage in whole["stages"] if stage["name"] in names]
    for stage in stages:
        adapter = stage_adapter(earlier, earlier.stage(stage["name"]), registry)
        stage |= {"start_from": None, "adapter": adapter.config.model_dump(mode="json")}
    model = loaded.written.model.model_dump(mode="json")
    kept = {key: whole[key] for key in ("recipe", "name", "seed")}
    return {**kept, "model": model, "stages": stages}


def _save_untrained(recipe: Recipe, name: str, run: Path, registry: Registry) -> str:
    """Write what a stage would leave before its first step, and return its adapter's method."""
    stage = recipe.stage(name)
    context = StageRunner(
        recipe,
        stage,
        folder=run / "stages" / name,
        dataset=None,
        registry=registry,
        trackers=Trackers([]),
    )
    _ = context.model  # attaches the adapter, and what the alignment adds
    context.save(StageResult(context.work.produces))
    return str(context.adapter.method)
