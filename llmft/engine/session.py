"""The main path: a job's stages, run one after another in one run folder."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pluggy import PluginManager

from llmft.api import RunInfo, StageResult, Task, Tracker, hookimpl
from llmft.api.errors import EnvironmentFault, Interrupted, PluginError, WaitsForPeople
from llmft.engine.auto_precision import decided
from llmft.engine.preflight import refuse_faults, start_remarks
from llmft.engine.progress_file import ProgressFile
from llmft.engine.recorder import Recorder
from llmft.engine.stage import StageRunner
from llmft.engine.trackers import Trackers
from llmft.hub import run_copier, sources, upload
from llmft.hub.run_copier import RunCopier
from llmft.modeling.base_model import BaseModel
from llmft.recipes.job import BoundStage, Job
from llmft.recipes.locating import located
from llmft.recipes.recipe import Stage
from llmft.registry.return_checks import result_of, shown
from llmft.runs import extending, fingerprint, locking, resuming, run_folder
from llmft.runs.accepted import NOTHING, Accepted
from llmft.runs.locking import Lock
from llmft.runs.resuming import PreviousRun
from llmft.runs.upstream import dataset_in, refuse_other_bases
from llmft.system import fsio, hub_commits, launcher
from llmft.system.plain_files import NOT_OURS, refuse_links_below
from llmft.system.quiet import captured_output
from llmft.system.signals import leave_on_signal
from llmft.system.tf32 import float32_products
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


def run_recipe(
    job: Job,
    part: Part = WHOLE,
    *,
    base: BaseModel | None = None,
    smoke: bool = False,
    as_in: Path | None = None,
    listeners: Sequence[Tracker[Any]] = (),
    copies_to: str | None = None,
) -> Summary:
    """Run the stages of a job in a new run folder, and return what was made and where.

    base: the job's base model, where it was looked at before. smoke: a tiny random model stands in
    for the recipe's. as_in: the folder of a run; names on the hub mean what they meant to it.
    listeners: who is told how it goes, beside the recipe's trackers. copies_to: the address to
    which the run is copied while it trains.
    Raises an LlmftError of the kind that stopped it; the stages finished by then stay on disk.
    """
    if as_in is None:
        hub_commits.begin()
    else:
        hub_commits.begin_as_in(as_in)
    base = base or BaseModel(job.recipe.model)
    _refuse_faults_quietly(job, base)
    job, remarks = decided(job, base)
    if copies_to is not None:
        run_copier.claim(copies_to, None)
    folder = run_folder.new_run_folder(job.recipe)
    session = Session(
        job, base, folder, part, smoke=smoke, listeners=listeners, copies_to=copies_to,
        remarks=remarks,
    )  # fmt: skip
    return session.run()


def _refuse_faults_quietly(job: Job, base: BaseModel) -> None:
    """Raise what stands in the way; there is no log yet for what upstream says meanwhile."""
    with captured_output(Path(os.devnull)):
        refuse_faults(job, base, runs_here=True)


def resume_recipe(
    job: Job,
    folder: Path | None = None,
    part: Part = WHOLE,
    accepted: Accepted = NOTHING,
    *,
    listeners: Sequence[Tracker[Any]] = (),
    copies_to: str | None = None,
) -> Summary:
    """Go on with a run where it stopped; a finished one is not touched.

    A finished stage is not run again, unless what it was made from has changed: its settings, its
    rows, or a stage it reads. What it made before is kept in the run's folder `replaced`.

    folder: the run's; default: the newest unfinished run of the recipe's name. accepted: what the
    person who resumes it accepts, and no recipe can. copies_to: as `run_recipe` has it; a finished
    run is copied, too.
    Raises CheckpointError where the recipe, the data or the model is not what the run began with.
    """
    folder = folder.resolve() if folder else resuming.newest_run(job)
    if folder.is_dir():
        refuse_links_below(folder, NOT_OURS)
    hub_commits.begin_as_in(folder)
    base = BaseModel(job.recipe.model)
    job, remarks = decided(job, base)
    session = Session(
        job, base, folder, part, accepted=accepted, listeners=listeners, copies_to=copies_to,
        remarks=remarks,
    )  # fmt: skip
    previous = resuming.examine(job, folder, part.first)
    if copies_to is not None:
        run_copier.claim(copies_to, folder.name)
    if finished := session.already_finished(previous):
        session.copy_finished()
        return finished
    _refuse_faults_quietly(job, base)
    return session.run(resumed=True)


class Session:
    """One run of a job in its folder, alone there.

    accepted: what the person who runs it accepts. smoke: its scores mean nothing. copies_to: an
    address to which it is copied. remarks: what a person should know of single stages, by name.
    """

    def __init__(
        self,
        job: Job,
        base: BaseModel,
        folder: Path,
        part: Part = WHOLE,
        *,
        accepted: Accepted = NOTHING,
        smoke: bool = False,
        listeners: Sequence[Tracker[Any]] = (),
        copies_to: str | None = None,
        remarks: Mapping[str, str] | None = None,
    ) -> None:
        self.job, self.base, self.folder, self.part = job, base, folder, part
        self.accepted, self.smoke = accepted, smoke
        self.remarks = [f"{stage}: {said}" for stage, said in (remarks or {}).items()]
        self.trackers = Trackers([*job.make_trackers(), *listeners, ProgressFile(), Recorder()])
        self.copier: RunCopier | None = None
        self._copies_to = copies_to
        self._copied: str | None = None  # why its copy is not complete; '': it is
        if copies_to is not None:
            name = job.recipe.name
            self.copier = RunCopier(copies_to, folder, name, self.trackers.note)

    def already_finished(self, previous: PreviousRun) -> Summary | None:
        """Return how a run ended that there is nothing left to do for, or None."""
        whole = not any(self.folder.glob(f"{fsio.STAGING}*"))  # else it ended while it reported
        finished = previous.finished and self.part.first is None and whole
        if finished and fingerprint.all_unchanged(self.job, self.folder):
            return Summary(
                self.folder.name, self.folder, 0.0, previous.results, already_finished=True
            )
        return None

    def run(self, *, resumed: bool = False) -> Summary:
        """Run the stages that are not finished, and tell the trackers how it ends.

        resumed: the folder holds a run that stopped.
        """
        started = time.monotonic()
        folder, previous = self.folder, None
        with (
            locking.held(folder, break_lock=self.accepted.lock) as lock,
            captured_output(folder / "log.txt"),
        ):
            if resumed:  # another process may have gone on with it until now
                previous = resuming.examine(self.job, folder, self.part.first)
                if finished := self.already_finished(previous):
                    return finished
            try:
                with leave_on_signal():
                    results = self._run_stages(lock, previous)
                    if self.copier is not None and self.copier.was_given_nothing:
                        self.copier.take("its end")  # of stages that were finished already
                    self._finish_copies()
            except BaseException as error:
                with suppress(Interrupted), leave_on_signal():  # by a second signal
                    self._finish_copies()
                raise self._told(error) from (
                    None if isinstance(error, Interrupted | WaitsForPeople) else error.__cause__
                )
            seconds = time.monotonic() - started
            self._tell_the_end(results, seconds)
            self._refuse_missing_copy()
        return Summary(folder.name, folder, seconds, results)

    def copy_finished(self) -> None:
        """Copy a run that is finished already. Raises EnvironmentFault (E230) where that fails."""
        if self.copier is not None:
            with locking.held(self.folder, break_lock=self.accepted.lock):
                self.copier.take("its end")
                self._finish_copies()
                self._refuse_missing_copy()

    def _finish_copies(self) -> None:
        """Wait until the last state of the run is copied, and say how that ended."""
        if self.copier is None or self._copied is not None:
            return
        self._copied = "it was not waited for"
        self._copied = self.copier.finish()
        if not self._copied and self.copier.last:
            self.trackers.note(f"copied to {self.copier.address}: {self.copier.last}")

    def _refuse_missing_copy(self) -> None:
        if self.copier is not None and self._copied:
            again = run_folder.resume_command(
                self.job, self.folder, self.part.last, self.smoke, self.copier.address
            )
            raise EnvironmentFault(
                "E230",
                f"the run is finished, and its copy at '{self.copier.address}' is not complete:"
                f" {self._copied}",
                fix=f"copy it again: {again}",
            )

    def _told(self, error: BaseException) -> BaseException:
        """Tell the trackers that a run stopped; return its error, with what to type next."""
        error.run_folder = self.folder  # type: ignore[attr-defined]  # where a crash report goes
        status = "interrupted" if isinstance(error, Interrupted) else "failed"
        status = "waits for people" if isinstance(error, WaitsForPeople) else status
        told = {"run_id": self.folder.name, "folder": str(self.folder), "status": status}
        self.trackers.run_finished(told)
        if isinstance(error, Interrupted):
            return run_folder.saying_how_to_go_on(
                error, self.job, self.folder, self.part.last, self.smoke, self._copies_to
            )
        if isinstance(error, WaitsForPeople):
            return run_folder.saying_who_ranks(
                error, self.job, self.folder, self.part.last, self.smoke, self._copies_to
            )
        return error

    def _tell_the_end(self, results: Mapping[str, StageResult], seconds: float) -> None:
        ended: dict[str, Any] = {
            "run_id": self.folder.name,
            "folder": str(self.folder),
            "seconds": seconds,
            "stages": {name: asdict(result) for name, result in results.items()},
        }
        if len(results) == len(self.job.stages):
            upload.push_after_run(self.job, self.folder, self.trackers.note)
        else:
            ended["status"] = f"stopped after '{self.part.last}', as asked"
        self.trackers.run_finished(ended)

    def _run_stages(self, lock: Lock, previous: PreviousRun | None) -> dict[str, StageResult]:
        """Run the stages one after another, each through the one dispatch point."""
        recipe = self.job.recipe
        manager = self.job.hooks()
        engine = Engine()
        manager.register(engine)
        try:
            names = tuple(stage.name for stage in recipe.stages)
            self.trackers.run_started(RunInfo(recipe.name, self.folder, recipe.resolved(), names))
            provenance = self._open(lock, previous)
            finished = dict(previous.results) if previous else {}
            results: dict[str, StageResult] = {}
            again, remade = False, set[str]()
            for bound in self.job.stages:
                again = again or bound.name == self.part.first
                with located(self.job, bound.name):
                    context = self._context(bound, lock, provenance)
                made = finished.get(bound.name)
                recorded = fingerprint.recorded(self.folder, bound.name)
                if made and not again and recorded == context.fingerprint:
                    self.trackers.note(f"{bound.name}: already finished")
                    results[bound.name] = made
                else:
                    why_not = ""
                    if made and previous and not again:
                        longer = self._longer(context, made, previous, recorded, provenance)
                        why_not = longer or ""
                        if longer == "":
                            made = None
                            remade.add(bound.name)
                    self._set_aside(context, made, again, remade, why_not)
                    with located(self.job, bound.name):
                        results[bound.name] = self._run_stage(context, manager, provenance)
                if bound.name == self.part.last:
                    break
        finally:
            manager.unregister(engine)
        return results

    def _open(self, lock: Lock, previous: PreviousRun | None) -> dict[str, Any]:
        """Write down that the run begins or goes on, tell its remarks, return its provenance."""
        job, base, folder = self.job, self.base, self.folder
        if previous:
            provenance, notes = run_folder.reopen(
                folder, job, base, previous, lock.killed, accept_plugins=self.accepted.plugins
            )
        else:
            provenance, notes = run_folder.write_inputs(folder, job, base, smoke=self.smoke), []
        set_all = all(s.task or s.train.train_batch_size for s in job.recipe.stages)
        told = launcher.remarks(rows_are_set=set_all)
        remarks = [*told, *self.remarks, *job.code_remarks(), *sources.remarks(job.recipe)]
        remarks += [*start_remarks(job, base), *self.trackers.contacts()]
        if self.copier is not None:
            remarks.append(f"each checkpoint is copied to {self.copier.address} while it trains")
        for note in [*notes, *remarks]:
            self.trackers.note(note)
        refuse_other_bases(job, provenance)
        return provenance

    def _context(self, bound: BoundStage, lock: Lock, provenance: dict[str, Any]) -> StageRunner:
        recipe, folder = self.job.recipe, self.folder
        context = StageRunner(
            self.job,
            bound,
            self.base,
            run=folder,
            folder=folder / "stages" / bound.name,
            dataset=dataset_in(bound, folder),
            trackers=self.trackers,
            tell=lock.tell,
        )
        context.accept_data = self.accepted.data
        context.copier = self.copier
        context.reads = fingerprint.reads(bound.spec, folder)
        context.fingerprint = fingerprint.stage_fingerprint(
            recipe, bound.spec, provenance, folder, context.data.digests
        )
        if (seen := sources.commits(recipe)) != provenance.get("hub", []):
            provenance["hub"] = seen  # what a resumed run loads again
            fsio.write_json(folder / "lock.json", provenance)
        return context

    def _longer(
        self,
        context: StageRunner,
        made: StageResult,
        previous: PreviousRun,
        recorded: str,
        provenance: Mapping[str, Any],
    ) -> str | None:
        """Let a finished stage that is to train longer go on from its end, where it can.

        Return '' where it does, why it does not, or None where that is not what has changed.
        """
        spec, folder = context.spec, self.folder
        before = extending.before_it_was_longer(spec, previous.edits)
        if before is None or recorded != fingerprint.stage_fingerprint(
            self.job.recipe, before, provenance, folder, context.data.digests
        ):
            return None
        schedule = context.bound.schedule
        callbacks = context.bound.callbacks
        why = extending.why_not_extended(
            before, spec, schedule, context.folder, made.steps, callbacks
        )
        if why:
            return why
        kept = extending.set_result_aside(folder, context.name)
        self.trackers.note(
            f"{context.name}: trains longer, from its end; its previous result is in '{kept}'"
        )
        return ""

    def _set_aside(
        self,
        context: StageRunner,
        made: StageResult | None,
        again: bool,
        remade: set[str],
        because: str = "",
    ) -> None:
        """Move what a stage that runs again made before out of the way, and say why it runs."""
        name = context.name
        if made:
            kept = fingerprint.set_aside(self.folder, name)
            because = because or "something that it depends on has changed"
            why = "as asked" if again else f"because {because}"
            self.trackers.note(f"{name}: runs again, {why}; its previous result is in '{kept}'")
            remade.add(name)
        elif why := fingerprint.why_restarts(self.folder, name, context.reads, remade, again):
            kept = fingerprint.set_aside(self.folder, name)
            self.trackers.note(f"{name}: restarts, {why}; its previous files are in '{kept}'")

    def _run_stage(
        self, context: StageRunner, manager: PluginManager, provenance: dict[str, Any]
    ) -> StageResult:
        """Run a stage through the one dispatch point; write its provenance and what it made."""
        self._prepare(context)
        if not isinstance(context.work, Task):  # the first process does a task alone
            self._tell_the_workers(context)
        returned = manager.hook.llmft_run_stage(stage=context.spec, context=context)
        result = self._checked(returned)
        provenance["rows_sha256"][context.name] = context.data.digests
        provenance["hub"] = sources.commits(self.job.recipe)
        fsio.write_json(self.folder / "lock.json", provenance)
        context.save(result)
        if isinstance(context.work, Task):
            for when, scores in (("before", result.before), ("after", result.after)):
                if scores:
                    self.trackers.scored(context.name, when, scores)
        if self.copier is not None:
            self.copier.take(f"the end of stage '{context.name}'")
        told = {"folder": str(context.folder), "samples": context.log.samples, **asdict(result)}
        self.trackers.stage_finished(context.name, told)
        return result

    def _checked(self, returned: Any) -> StageResult:
        """Return what a stage's hook gave; only a wrapper's can be wrong, as ours is checked."""
        if not isinstance(returned, StageResult):
            names = ", ".join(self.job.recipe.plugins)
            raise PluginError(
                "E502",
                f"a plugin under 'plugins' ({names}) returns {shown(returned)} for a stage, not"
                " its StageResult",
                fix="report it to the plugin's author, or remove the plugin",
            )
        return returned

    def _prepare(self, context: StageRunner) -> None:
        """Make the stage's folder, or clear what a kill left half-published in it."""
        place = context.folder
        if place.is_dir():
            resuming.clear_unfinished(place)
            trained = not isinstance(context.work, Task)
            if trained and not any(place.glob(f"{CHECKPOINTS}/step-*")):
                self.trackers.note(
                    f"{context.name}: no checkpoint was saved, so the stage restarts"
                )
        with fsio.disk_errors(place):
            place.mkdir(parents=True, exist_ok=True)

    def _tell_the_workers(self, context: StageRunner) -> None:
        from llmft.system import distributed

        order = launcher.Order(str(self.folder), context.name, context.data.digests)
        distributed.on_rank_zero(lambda: order)


class Engine:
    """The engine's own implementation of the one dispatch point."""

    @hookimpl(trylast=True)
    def llmft_run_stage(self, stage: Stage, context: StageRunner) -> StageResult:
        """Let the stage's alignment train, or its task run."""
        from llmft.system.distributed import in_step

        with float32_products(stage.train.tf32), in_step(stage.train.shard_base):
            if isinstance(context.work, Task):
                result = context.work.run(context)
            else:
                result = context.work.train(context)
        return result_of(context.work, result, context.folder)
