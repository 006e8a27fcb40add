"""The main path: a recipe's stages, run one after another into one new run folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from llmft import fsio
from llmft.api import RunInfo, StageResult, hookimpl
from llmft.deep import check_against_model
from llmft.errors import Interrupted, RecipeError
from llmft.notify import Trackers
from llmft.quiet import captured_output
from llmft.reading.recipe import Loaded
from llmft.recipe import Recipe, Stage
from llmft.registry import Registry
from llmft.saving import locking, resuming, run_folder
from llmft.saving.checkpoints import FOLDER as CHECKPOINTS
from llmft.saving.earlier import stage_adapter
from llmft.saving.locking import Lock
from llmft.saving.resuming import Earlier
from llmft.sharing import hub, upload
from llmft.stage import StageRun
from llmft.training.signals import leave_on_signal


@dataclass(frozen=True)
class Summary:
    """How a run ended. already_finished: there was nothing to do, and nothing was written."""

    run_id: str
    folder: Path
    seconds: float
    stages: Mapping[str, StageResult]
    already_finished: bool = False


def run_recipe(loaded: Loaded, registry: Registry) -> Summary:
    """Run every stage of a recipe, and return what was made and where it was written.

    Raises an LlmftError of the kind that stopped it; the stages finished by then stay on disk.
    """
    _refuse_misfits(loaded, registry)
    return _run(loaded, registry, run_folder.new_run_folder(loaded.recipe))


def resume_recipe(loaded: Loaded, registry: Registry, folder: Path | None = None) -> Summary:
    """Go on with a run where it stopped; a finished one is not touched.

    folder: the run's; default: the newest unfinished run of the recipe's name.
    Raises CheckpointError where the recipe, the data or the model is not what the run began with.
    """
    folder = folder.resolve() if folder else resuming.newest_run(loaded)
    earlier = resuming.examine(loaded, folder, registry)
    if earlier.finished:
        return Summary(folder.name, folder, 0.0, earlier.results, already_finished=True)
    _refuse_misfits(loaded, registry)
    return _run(loaded, registry, folder, earlier)


def _refuse_misfits(loaded: Loaded, registry: Registry) -> None:
    if faults := check_against_model(loaded, registry):
        raise RecipeError.of(faults)


def _run(
    loaded: Loaded, registry: Registry, folder: Path, earlier: Earlier | None = None
) -> Summary:
    """Run the stages that are not finished, alone in the folder, and tell how it ends."""
    started = time.monotonic()
    trackers = Trackers(
        [registry.method("tracker", config.method)(config) for config in loaded.recipe.trackers]
    )
    with locking.held(folder) as lock, captured_output(folder / "log.txt"):
        try:
            with leave_on_signal():
                results = _run_stages(loaded, registry, folder, trackers, lock, earlier)
        except BaseException as error:
            error.run_folder = folder  # type: ignore[attr-defined]  # where a crash report goes
            state = "interrupted" if isinstance(error, Interrupted) else "failed"
            trackers.run_finished({"run_id": folder.name, "folder": str(folder), "status": state})
            if isinstance(error, Interrupted):
                raise _saying_how_to_go_on(error, loaded, folder) from None
            raise
        upload.push_after_run(loaded.recipe, folder, registry, trackers.note)
        seconds = time.monotonic() - started
        trackers.run_finished({"run_id": folder.name, "folder": str(folder), "seconds": seconds})
    return Summary(folder.name, folder, seconds, results)


def _run_stages(
    loaded: Loaded,
    registry: Registry,
    folder: Path,
    trackers: Trackers,
    lock: Lock,
    earlier: Earlier | None,
) -> dict[str, StageResult]:
    """Run the stages one after another, each through the one dispatch point."""
    recipe = loaded.recipe
    manager = registry.cross_cutting(recipe.plugins)
    engine = Engine()
    manager.register(engine)
    try:
        names = tuple(stage.name for stage in recipe.stages)
        trackers.run_started(RunInfo(recipe.name, folder, recipe.resolved(), names))
        if earlier:
            ground, notes = run_folder.reopen(folder, loaded, registry, earlier, lock.killed)
        else:
            ground, notes = run_folder.write_inputs(folder, loaded, registry), []
        for note in [*notes, *hub.remarks(recipe)]:
            trackers.note(note)
        results: dict[str, StageResult] = dict(earlier.results) if earlier else {}
        for stage in recipe.stages:
            if stage.name in results:
                trackers.note(f"{stage.name}: finished already")
                continue
            context = _context(recipe, stage, folder, registry, trackers, lock)
            result: StageResult = manager.hook.llmft_run_stage(stage=stage, context=context)
            ground["rows_sha256"][stage.name] = context.digests
            ground["hub"] = hub.commits(recipe)
            fsio.write_json(folder / "lock.json", ground)
            context.save(result)
            results[stage.name] = result
            told = {"folder": str(context.folder), "samples": context.samples, **asdict(result)}
            trackers.stage_finished(stage.name, told)
    finally:
        manager.unregister(engine)
    return results


class Engine:
    """The engine's own implementation of the one dispatch point."""

    @hookimpl(trylast=True)
    def llmft_run_stage(self, stage: Stage, context: StageRun) -> StageResult:
        """Let the stage's alignment train."""
        return context.alignment.train(context)


def _context(
    recipe: Recipe, stage: Stage, folder: Path, registry: Registry, trackers: Trackers, lock: Lock
) -> StageRun:
    place = folder / "stages" / stage.name
    if place.is_dir():
        resuming.clear_unfinished(place)
        if not any(place.glob(f"{CHECKPOINTS}/step-*")):
            trackers.note(f"{stage.name}: no checkpoint was saved, so it starts again")
    with fsio.disk_errors(place):
        place.mkdir(parents=True, exist_ok=True)
    return StageRun(
        recipe,
        stage,
        folder=place,
        adapter=stage_adapter(recipe, stage, registry),
        alignment=registry.method("alignment", stage.alignment.method)(stage.alignment),
        dataset=registry.method("dataset", stage.data.method)(stage.data),
        registry=registry,
        trackers=trackers,
        tell=lock.tell,
    )


def _saying_how_to_go_on(error: Interrupted, loaded: Loaded, folder: Path) -> Interrupted:
    command = run_folder.resume_command(loaded, folder)
    fix = f"go on with: {command}" if command else ""
    return Interrupted(error.exit_code - 128, error.faults[0].what, fix=fix)
