"""The main path: a recipe's stages, run one after another into one new run folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pluggy import PluginManager

from llmft.api import RunInfo, StageResult, Task, hookimpl
from llmft.api.errors import Interrupted, PluginError, RecipeError, WaitsForPeople
from llmft.data.stage_rows import check_rows
from llmft.engine.preflight import check_against_model
from llmft.engine.stage import StageRunner
from llmft.engine.trackers import Trackers
from llmft.hub import sources, upload
from llmft.recipes.load import Loaded
from llmft.recipes.recipe import Recipe, Stage
from llmft.recipes.references import stage_references
from llmft.registry.registry import Registry
from llmft.registry.return_checks import result_of, shown
from llmft.runs import fingerprint, locking, resuming, run_folder
from llmft.runs.locking import Lock
from llmft.runs.resuming import PreviousRun
from llmft.runs.upstream import refuse_other_bases, stage_dataset
from llmft.system import fsio, hub_commits, launcher
from llmft.system.plain_files import NOT_OURS, refuse_links_below
from llmft.system.quiet import captured_output
from llmft.system.signals import leave_on_signal
from llmft.training.checkpoints import FOLDER as CHECKPOINTS


@dataclass(frozen=True)
class Part:
    """Which part of a recipe runs. first: this stage and those after it, finished or not.

    last: nothing after this stage. None: from where the run stopped, and to its end.
    """

    first: str | None = None
    last: str | None = None


@dataclass(frozen=True)
class Summary:
    """How a run ended. already_finished: there was nothing to do, and nothing was written."""

    run_id: str
    folder: Path
    seconds: float
    stages: Mapping[str, StageResult]
    already_finished: bool = False


WHOLE = Part()


def run_recipe(loaded: Loaded, registry: Registry, part: Part = WHOLE) -> Summary:
    """Run the stages of a recipe, and return what was made and where it was written.

    Raises an LlmftError of the kind that stopped it; the stages finished by then stay on disk.
    """
    hub_commits.begin()
    _refuse_misfits(loaded, registry)
    return _run(loaded, registry, run_folder.new_run_folder(loaded.recipe), part)


def resume_recipe(
    loaded: Loaded, registry: Registry, folder: Path | None = None, part: Part = WHOLE
) -> Summary:
    """Go on with a run where it stopped; a finished one is not touched.

    A finished stage is not run again, unless what it was made from has changed: its settings, its
    rows, or a stage it reads. What it made before is kept in the run's folder `replaced`.

    folder: the run's; default: the newest unfinished run of the recipe's name.
    Raises CheckpointError where the recipe, the data or the model is not what the run began with.
    """
    folder = folder.resolve() if folder else resuming.newest_run(loaded)
    if folder.is_dir():
        refuse_links_below(folder, NOT_OURS)
    hub_commits.begin_as_in(folder)
    earlier = resuming.examine(loaded, folder, registry, part.first)
    if whole := _whole(loaded, registry, folder, part, earlier):
        return whole
    _refuse_misfits(loaded, registry)
    return _run(loaded, registry, folder, part, earlier)


def _whole(
    loaded: Loaded, registry: Registry, folder: Path, part: Part, earlier: PreviousRun
) -> Summary | None:
    """Return how a run ended that there is nothing left to do for, or None."""
    finished = earlier.finished and part.first is None
    if finished and fingerprint.all_unchanged(loaded.recipe, registry, folder):
        return Summary(folder.name, folder, 0.0, earlier.results, already_finished=True)
    return None


def _refuse_misfits(loaded: Loaded, registry: Registry) -> None:
    if faults := check_against_model(loaded, registry):
        raise RecipeError.of(faults)
    for stage in loaded.written.stages[1:]:  # a wrong path shall not end a night half-way
        if stage.data and not stage_references(stage.data):
            check_rows(stage_dataset(loaded.written, stage, registry, None), stage)


def _run(
    loaded: Loaded, registry: Registry, folder: Path, part: Part, earlier: PreviousRun | None = None
) -> Summary:
    """Run the stages that are not finished, alone in the folder, and tell how it ends."""
    started = time.monotonic()
    trackers = Trackers(
        [registry.method("tracker", config.method)(config) for config in loaded.recipe.trackers]
    )
    with (
        locking.held(folder, break_lock=loaded.accepted.lock) as lock,
        captured_output(folder / "log.txt"),
    ):
        if earlier:  # another process may have gone on with it until now
            earlier = resuming.examine(loaded, folder, registry, part.first)
            if whole := _whole(loaded, registry, folder, part, earlier):
                return whole
        try:
            with leave_on_signal():
                results = _run_stages(loaded, registry, folder, trackers, lock, part, earlier)
        except BaseException as error:
            error.run_folder = folder  # type: ignore[attr-defined]  # where a crash report goes
            state = "interrupted" if isinstance(error, Interrupted) else "failed"
            state = "waits for people" if isinstance(error, WaitsForPeople) else state
            trackers.run_finished({"run_id": folder.name, "folder": str(folder), "status": state})
            if isinstance(error, Interrupted):
                raise run_folder.saying_how_to_go_on(error, loaded, folder, part.last) from None
            if isinstance(error, WaitsForPeople):
                raise run_folder.saying_who_ranks(error, loaded, folder, part.last) from None
            raise
        seconds = time.monotonic() - started
        ended: dict[str, Any] = {"run_id": folder.name, "folder": str(folder), "seconds": seconds}
        ended["stages"] = {name: asdict(result) for name, result in results.items()}
        if len(results) == len(loaded.recipe.stages):
            upload.push_after_run(loaded.recipe, folder, registry, trackers.note)
        else:
            ended["status"] = f"stopped after '{part.last}', as asked"
        trackers.run_finished(ended)
    return Summary(folder.name, folder, seconds, results)


def _run_stages(
    loaded: Loaded,
    registry: Registry,
    folder: Path,
    trackers: Trackers,
    lock: Lock,
    part: Part,
    earlier: PreviousRun | None,
) -> dict[str, StageResult]:
    """Run the stages one after another, each through the one dispatch point."""
    recipe = loaded.recipe
    manager = registry.cross_cutting(recipe.plugins)
    engine = Engine()
    manager.register(engine)
    try:
        names = tuple(stage.name for stage in recipe.stages)
        trackers.run_started(RunInfo(recipe.name, folder, recipe.resolved(), names))
        provenance = _open_run(loaded, registry, folder, trackers, lock, earlier)
        finished = dict(earlier.results) if earlier else {}
        results: dict[str, StageResult] = {}
        again, remade = False, set[str]()
        for stage in recipe.stages:
            again = again or stage.name == part.first
            context = _context(recipe, stage, folder, registry, trackers, lock)
            context.accept_data = loaded.accepted.data
            context.reads = fingerprint.reads(stage, folder)
            context.fingerprint = fingerprint.stage_fingerprint(
                recipe, stage, provenance, folder, context.digests
            )
            if (seen := sources.commits(recipe)) != provenance.get("hub", []):
                provenance["hub"] = seen  # what a resumed run loads again
                fsio.write_json(folder / "lock.json", provenance)
            made = finished.get(stage.name)
            if (
                made
                and not again
                and fingerprint.recorded(folder, stage.name) == context.fingerprint
            ):
                trackers.note(f"{stage.name}: finished already")
                results[stage.name] = made
            else:
                if made:
                    kept = fingerprint.set_aside(folder, stage.name)
                    why = "as asked" if again else "as what it is made from has changed"
                    trackers.note(f"{stage.name}: runs again, {why}; what it made is in '{kept}'")
                    remade.add(stage.name)
                elif why := fingerprint.why_restarts(
                    folder, stage.name, context.reads, remade, again
                ):
                    kept = fingerprint.set_aside(folder, stage.name)
                    trackers.note(f"{stage.name}: begins anew, {why}; what it had is in '{kept}'")
                results[stage.name] = _run_stage(context, manager, folder, provenance)
            if stage.name == part.last:
                break
    finally:
        manager.unregister(engine)
    return results


def _open_run(
    loaded: Loaded,
    registry: Registry,
    folder: Path,
    trackers: Trackers,
    lock: Lock,
    earlier: PreviousRun | None,
) -> dict[str, Any]:
    """Write down that the run begins or goes on, tell its remarks, and return what it stands on."""
    if earlier:
        provenance, notes = run_folder.reopen(folder, loaded, registry, earlier, lock.killed)
    else:
        provenance, notes = run_folder.write_inputs(folder, loaded, registry), []
    remarks = [*launcher.remarks(), *sources.remarks(loaded.recipe), *trackers.contacts()]
    for note in [*notes, *remarks]:
        trackers.note(note)
    refuse_other_bases(loaded.recipe, provenance)
    return provenance


def _run_stage(
    context: StageRunner, manager: PluginManager, folder: Path, provenance: dict[str, Any]
) -> StageResult:
    """Run a stage through the one dispatch point; write what it stood on and what it made."""
    _prepare(context)
    if not isinstance(context.work, Task):  # the first process does a task alone
        _tell_the_others(context, folder)
    given = manager.hook.llmft_run_stage(stage=context.stage, context=context)
    result = _result(given, context.recipe)
    provenance["rows_sha256"][context.name] = context.digests
    provenance["hub"] = sources.commits(context.recipe)
    fsio.write_json(folder / "lock.json", provenance)
    context.save(result)
    told = {"folder": str(context.folder), "samples": context.samples, **asdict(result)}
    context.trackers.stage_finished(context.name, told)
    return result


def _result(given: Any, recipe: Recipe) -> StageResult:
    """Return what a stage's hook gave; the engine's own is right, so the rest is a wrapper's."""
    if not isinstance(given, StageResult):
        raise PluginError(
            "E502",
            f"a plugin under 'plugins' ({', '.join(recipe.plugins)}) returns {shown(given)} for a"
            " stage, not its StageResult",
            fix="report it to the plugin's author, or take the plugin out",
        )
    return given


class Engine:
    """The engine's own implementation of the one dispatch point."""

    @hookimpl(trylast=True)
    def llmft_run_stage(self, stage: Stage, context: StageRunner) -> StageResult:
        """Let the stage's alignment train, or its task run."""
        if isinstance(context.work, Task):
            result = context.work.run(context)
        else:
            result = context.work.train(context)
        return result_of(context.work, result, context.folder)


def _context(
    recipe: Recipe, stage: Stage, folder: Path, registry: Registry, trackers: Trackers, lock: Lock
) -> StageRunner:
    return StageRunner(
        recipe,
        stage,
        folder=folder / "stages" / stage.name,
        dataset=stage_dataset(recipe, stage, registry, folder),
        registry=registry,
        trackers=trackers,
        tell=lock.tell,
    )


def _prepare(context: StageRunner) -> None:
    """Make the stage's folder, or clear what a kill left half-published in it."""
    place = context.folder
    if place.is_dir():
        resuming.clear_unfinished(place)
        trained = not isinstance(context.work, Task)
        if trained and not any(place.glob(f"{CHECKPOINTS}/step-*")):
            context.trackers.note(f"{context.name}: no checkpoint was saved, so it starts again")
    with fsio.disk_errors(place):
        place.mkdir(parents=True, exist_ok=True)


def _tell_the_others(context: StageRunner, folder: Path) -> None:
    from llmft.system import distributed

    distributed.on_rank_zero(lambda: launcher.Order(str(folder), context.name, context.digests))
