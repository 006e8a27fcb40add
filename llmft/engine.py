"""The main path: a recipe's stages, run one after another into one new run folder."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmft import fsio
from llmft.api import RunInfo, StageResult, hookimpl
from llmft.deep import check_against_model
from llmft.errors import EnvironmentFault, Interrupted, RecipeError
from llmft.notify import Trackers
from llmft.quiet import captured_output
from llmft.recipe import Loaded, Recipe, Stage
from llmft.registry import Registry
from llmft.stage import StageRun, stage_adapter


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    run_id: str
    folder: Path
    seconds: float
    stages: Mapping[str, StageResult]


def run_recipe(loaded: Loaded, registry: Registry) -> Summary:
    """Run every stage of a recipe, and return what was made and where it was written.

    Raises an LlmftError of the kind that stopped it; the stages finished by then stay on disk.
    """
    started = time.monotonic()
    recipe = loaded.recipe
    if faults := check_against_model(loaded, registry):
        raise RecipeError.of(faults)
    folder = new_run_folder(recipe)
    trackers = Trackers(
        [registry.method("tracker", config.method)(config) for config in recipe.trackers]
    )
    with captured_output(folder / "log.txt"):
        try:
            results = _run_stages(loaded, registry, folder, trackers)
        except BaseException as error:
            error.run_folder = folder  # type: ignore[attr-defined]  # where a crash report goes
            state = "interrupted" if isinstance(error, Interrupted) else "failed"
            trackers.run_finished({"run_id": folder.name, "folder": str(folder), "status": state})
            raise
        seconds = time.monotonic() - started
        trackers.run_finished({"run_id": folder.name, "folder": str(folder), "seconds": seconds})
    return Summary(folder.name, folder, seconds, results)


def _run_stages(
    loaded: Loaded, registry: Registry, folder: Path, trackers: Trackers
) -> dict[str, StageResult]:
    """Run the stages one after another, each through the one dispatch point."""
    recipe = loaded.recipe
    manager = registry.cross_cutting(recipe.plugins)
    engine = Engine()
    manager.register(engine)
    try:
        _write_inputs(folder, loaded)
        names = tuple(stage.name for stage in recipe.stages)
        trackers.run_started(RunInfo(recipe.name, folder, recipe.resolved(), names))
        results: dict[str, StageResult] = {}
        digests: dict[str, Any] = {}
        for stage in recipe.stages:
            context = _context(recipe, stage, folder, registry, trackers)
            result: StageResult = manager.hook.llmft_run_stage(stage=stage, context=context)
            context.save(result)
            results[stage.name], digests[stage.name] = result, context.digests
            trackers.stage_finished(stage.name, {"folder": str(context.folder), **asdict(result)})
        _write_lock(folder, recipe, registry, digests)
    finally:
        manager.unregister(engine)
    return results


class Engine:
    """The engine's own implementation of the one dispatch point."""

    @hookimpl(trylast=True)
    def llmft_run_stage(self, stage: Stage, context: StageRun) -> StageResult:
        """Let the stage's alignment train."""
        return context.alignment.train(context)


def new_run_folder(recipe: Recipe) -> Path:
    """Make and return a folder that no other run has: <output_dir>/<name>/<time>-<hash>."""
    parent = Path(recipe.output_dir) / recipe.name
    text = json.dumps(recipe.resolved(), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    for attempt in range(1000):
        stamp = time.strftime("%Y%m%d-%H%M%S") + (f"-{attempt + 1}" if attempt else "")
        folder = parent / f"{stamp}-{digest}"
        try:
            fsio.make_private_folder(folder)
        except FileExistsError:
            continue
        return folder.resolve()
    raise EnvironmentFault("E203", f"cannot find a free name for a run folder in '{parent}'")


def _context(
    recipe: Recipe, stage: Stage, folder: Path, registry: Registry, trackers: Trackers
) -> StageRun:
    place = folder / "stages" / stage.name
    with fsio.disk_errors(place):
        place.mkdir(parents=True)
    return StageRun(
        recipe,
        stage,
        folder=place,
        adapter=stage_adapter(recipe, stage, registry),
        alignment=registry.method("alignment", stage.alignment.method)(stage.alignment),
        dataset=registry.method("dataset", stage.data.method)(stage.data),
        registry=registry,
        trackers=trackers,
    )


def _write_inputs(folder: Path, loaded: Loaded) -> None:
    """Write the recipe as it was given, and as it was understood."""
    recipe = loaded.recipe
    fsio.write_text(folder / "recipe.yaml", loaded.text)
    fsio.write_text(folder / "resolved.yaml", resolved_yaml(recipe))
    fsio.write_json(
        folder / "run.json",
        {
            "run_id": folder.name,
            "name": recipe.name,
            "recipe_file": loaded.path,
            "overrides": list(loaded.overrides),
            "stages": [stage.name for stage in recipe.stages],
        },
    )


def _write_lock(
    folder: Path, recipe: Recipe, registry: Registry, digests: Mapping[str, Any]
) -> None:
    from llmft.lock import lock_of

    lock = lock_of(recipe.seed, recipe.model.path, plugins_of(recipe, registry))
    fsio.write_json(folder / "lock.json", {**lock, "rows_sha256": dict(digests)})


def resolved_yaml(recipe: Recipe) -> str:
    """Return the recipe with every default written out, as YAML that loads to the same recipe."""
    import io

    from ruamel.yaml import YAML

    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(recipe.resolved(), stream)
    return stream.getvalue()


def plugins_of(recipe: Recipe, registry: Registry) -> list[dict[str, Any]]:
    """Return which distribution, version and code gave each method that a recipe names."""
    wanted = {("tracker", tracker.method) for tracker in recipe.trackers}
    for stage in recipe.stages:
        wanted |= {("alignment", stage.alignment.method), ("dataset", stage.data.method)}
        wanted |= {("adapter", stage.adapter.method)} if stage.adapter else set()
    return [
        {
            "kind": record.kind,
            "method": record.method,
            "distribution": record.distribution,
            "version": record.version,
            "sha256": registry.file_hash(record),
        }
        for record in registry.records(load=False)
        if (record.kind, record.method) in wanted
    ]
