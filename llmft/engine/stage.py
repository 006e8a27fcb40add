"""A running stage: its parts, and how it is trained and scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmft.api import (
    Alignment,
    DataError,
    EncodedPrompt,
    Objective,
    OnlineObjective,
    Progress,
    RewardConfig,
    RewardFunction,
    RowScores,
    ScoredTaskConfig,
    StageInfo,
    StageResult,
)
from llmft.data.packing import PackedObjective, pack
from llmft.data.preview_page import preview_page
from llmft.data.streaming import StreamedItems
from llmft.engine.stage_data import StageData
from llmft.engine.stage_log import StageLog
from llmft.engine.stage_models import StageModels
from llmft.engine.stage_preview import PAGE, ROWS_ON_PAGE, preview_of
from llmft.engine.stage_sampler import StageSampler
from llmft.engine.stage_scoring import StageScoring
from llmft.engine.trackers import Trackers
from llmft.hub.model_card import Place, card
from llmft.hub.run_copier import RunCopier
from llmft.modeling.base_model import BaseModel
from llmft.modeling.counting import count_parameters, token_rows
from llmft.recipes.job import BoundStage, Job
from llmft.registry.return_checks import groups_of, violation
from llmft.runs import artifacts
from llmft.runs.resuming import trim_metrics
from llmft.runs.upstream import upstream_folder
from llmft.system import fsio
from llmft.system.machine import full_determinism, seed_everything
from llmft.training.checked import CheckedObjective, CheckedOnlineObjective
from llmft.training.checkpoints import FOLDER as CHECKPOINTS
from llmft.training.checkpoints import Checkpoints, Saved
from llmft.training.validation import Validation, evaluated_step


class StageRunner:
    """The StageContext of `llmft.api`, for one stage of a run.

    run: the run folder, which has the earlier stages. folder: where this stage writes. dataset:
    knows the folders of the stages it reads. tell: hears where the run is, for its lock.
    """

    planned = False

    def __init__(
        self,
        job: Job,
        bound: BoundStage,
        base: BaseModel,
        *,
        run: Path,
        folder: Path,
        dataset: Any,
        trackers: Trackers,
        tell: Callable[[str], None] = lambda at: None,
    ) -> None:
        self.job, self.bound, self.base, self.run, self.folder = job, bound, base, run, folder
        self.name, self.spec, self.work = bound.name, bound.spec, bound.work
        self.seed, self.train = bound.spec.own_seed(job.recipe.seed), bound.spec.train
        self.dataset, self.trackers, self._tell = dataset, trackers, tell
        self.fingerprint = ""
        self.reads: Mapping[str, str] = {}  # the fingerprint of each stage that this one reads
        self.accept_data = False
        self.copier: RunCopier | None = None
        asked = bound.spec.evaluate
        self.log = StageLog(self.name, trackers, asked.samples if asked else 0)
        self.models, self.data, self.sampler = self._parts()
        self.scoring = StageScoring(self)

    def _parts(self) -> tuple[Any, Any, Any]:
        """Return what answers as `models`, `data` and `sampler`."""
        models = StageModels(self.job, self.bound, self.base, self.run, self.log)
        seed = self.job.recipe.seed  # the rows of all rounds of a stage are the same
        data = StageData(self.bound, self.dataset, self.base, seed, self.log)
        return models, data, StageSampler(models, data, self.log)

    def row_scores(self, *, base: bool = False) -> RowScores:
        """Return the scores of the stage's rows, as its task's settings ask."""
        asked = self.spec.task
        assert isinstance(asked, ScoredTaskConfig)  # no other task asks
        return self.scoring.of_task(asked, base=base)

    def stage_folder(self, name: str) -> Path:
        """Return the folder of an earlier stage that is finished."""
        return upstream_folder(self.bound.upstream[name], self.run)

    def reward_function(self, config: RewardConfig) -> RewardFunction[Any]:
        """Return the reward function of a block in the method's own settings."""
        function = self.bound.reward_function(config)
        function.start(self)
        return function

    def fit(self, items: Any, objective: Objective) -> StageResult:
        """Announce the stage, score the adapter, train it, and score it again.

        items: a sequence, or what `data.encode` gives of streamed rows.
        """
        self._keep_preview(items)
        if self.train.packing and self.data.max_length:
            limit, strategy = self.data.max_length, self.train.packing_strategy
            if isinstance(items, StreamedItems):
                items = items.grouped(lambda rows: pack(rows, limit, strategy))
            else:
                items = pack(items, limit, strategy)
            objective = PackedObjective(objective)
        return self._fit(items, CheckedObjective(objective, self.work), None)

    def fit_online(self, prompts: Sequence[Any], objective: OnlineObjective) -> StageResult:
        """Do what `fit` does with items that the objective samples to prompts."""
        if self.train.per_device_train_tokens:
            what = "it samples its rows, and does not declare 'supports_token_budget = False'"
            raise violation(self.work, what)
        if self.train.shard_base:
            what = "it samples its rows, and does not declare 'supports_shard_base = False'"
            raise violation(self.work, what)
        if self.train.train_sampling_strategy == "group_by_length":
            what = "it samples its rows, and does not declare 'supports_length_groups = False'"
            raise violation(self.work, what)
        self._keep_preview(prompts)
        checked = CheckedOnlineObjective(objective, self.work)
        return self._fit(prompts, checked, checked)

    def _fit(
        self,
        items: Sequence[Any] | StreamedItems,
        objective: Objective,
        online: OnlineObjective | None,
    ) -> StageResult:
        with full_determinism(self.train.full_determinism):
            return self._trained(items, objective, online)

    def _trained(
        self,
        items: Sequence[Any] | StreamedItems,
        objective: Objective,
        online: OnlineObjective | None,
    ) -> StageResult:
        from llmft.system import distributed
        from llmft.training import loop
        from llmft.training.step_plan import Plan, refuse_endless_warmup

        if not items:
            raise DataError("E105", f"stage '{self.name}' has no rows left to train on")
        count = 0 if isinstance(items, StreamedItems) else len(items)
        plan = Plan.of(count, self.train, self.seed, distributed.count())
        schedule = self.bound.schedule
        rates = 1 if online is None else online.rates_per_step
        refuse_endless_warmup(self.name, self.train, plan.steps, schedule.last_steps(), rates)
        shown = self._first(items)
        self.trackers.stage_started(self._info(shown, plan.steps))
        checkpoints = self._checkpoints(count)
        saved = checkpoints.in_all(checkpoints.newest)
        before = self._before(saved)
        carried = {"before": before, "samples": list(self.log.samples), "reads": dict(self.reads)}
        checkpoints.carried = carried
        self.log.progress("train", saved.step if saved else 0, plan.steps)
        seed_everything(self.seed + distributed.rank())  # each process drops out for itself
        validation = self.scoring.validation(plan.steps, before)
        report = loop.train(
            self.models.model,
            items,
            objective,
            self.train,
            seed=self.seed,
            groups=self._groups(),
            on_step=self._on_step,
            checkpoints=checkpoints,
            saved=saved,
            online=online,
            validation=validation,
            schedule=type(schedule)(schedule.config),
            optimizer=self.bound.optimizer,
            callbacks=[type(one)(one.config) for one in self.bound.callbacks],
        )
        if report.ended_by:
            where = f"at step {report.steps} of {plan.steps}"
            self.log.note(f"ended {where}: {report.ended_by}")
        after = self.scoring.score("after")
        self.models.make_whole()
        return StageResult(
            produces=self.work.produces,
            steps=report.steps,
            metrics={
                "train_loss": report.train_loss,
                **({"skipped_updates": report.skipped} if report.skipped else {}),
                "train_seconds": round(report.seconds, 3),
                "items_seen": report.items,
                **checkpoints.metrics(),
                **self._of_best(validation, report.steps, plan.steps),
            },
            before=before,
            after=after,
            scores=self.scoring.intervals(before, after),
            generation=self.scoring.generation,
        )

    def _first(self, items: Sequence[Any] | StreamedItems) -> Sequence[Any]:
        """Return the items, of streamed ones the first."""
        made = self.data.trained_on
        if not isinstance(items, StreamedItems):
            return items
        return made.items if made is not None else ()

    def _keep_preview(self, items: Sequence[Any] | StreamedItems) -> None:
        """Write the page that shows what is trained on, once for all processes."""
        from llmft.system import distributed

        made = self.data.trained_on
        if distributed.rank() or made is None:
            return
        shown = preview_of(self, made, self._first(items), picks=ROWS_ON_PAGE)
        title = f"{self.job.recipe.name}/{self.name}"
        fsio.write_text(self.folder / PAGE, preview_page(title, [shown]))

    def _of_best(self, validation: Validation | None, steps: int, planned: int) -> dict[str, float]:
        """Return the best evaluation during training as metrics, and say what came of it."""
        metric = validation.settings.best_metric if validation else None
        if validation is None or metric is None or validation.best is None:
            return {}
        step, value = validation.best
        if steps < planned and validation.stop:
            self.log.note(
                f"stopped early, at step {steps} of {planned}: {validation.waited} evaluations"
                f" without a better {metric}"
            )
        if validation.settings.load_best_model_at_end:
            self.log.note(
                f"the result is that of step {step}, the best of {validation.count} evaluations"
                f" ({metric} {value:.6g})"
            )
        return {"best_step": step, f"best_{metric}": value}

    def _checkpoints(self, count: int) -> Checkpoints:
        rows = {f"{split} rows": digest for split, digest in self.data.digests.items()}
        made = Checkpoints(
            self.folder / CHECKPOINTS,
            self.run.name,
            {**rows, "number of items": count},
            self.train.save_total_limit,
            self.log.note,
            self.accept_data,
        )
        if (copier := self.copier) is not None:
            made.on_saved = lambda step: copier.checkpoint(self.name, step, made.best)
        return made

    def _before(self, saved: Saved | None) -> Mapping[str, float]:
        """Return the scores before training: measured now, or by the run that is resumed."""
        trim_metrics(
            self.folder, saved.step if saved else 0, evaluated_step(saved.facts) if saved else 0
        )
        if saved is None:
            return self.scoring.score("before")
        self.log.note(f"continues after step {saved.step}, from its checkpoint")
        self.log.samples = list(saved.carried["samples"])
        self.scoring.go_on()
        before: Mapping[str, float] = saved.carried["before"]
        if before:
            self.trackers.scored(self.name, "before", before)
        return before

    def save(self, result: StageResult) -> None:
        """Write what the stage made; its result comes last, and says that it is finished."""
        fsio.write_jsonl(self.folder / "samples.jsonl", self.log.samples)
        made = (self.models.adapter, self.work) if isinstance(self.work, Alignment) else ()
        model = self.models.model if made else None
        artifacts.save_stage(
            self.folder,
            self.run.name,
            made,
            model,
            result,
            self.fingerprint,
            card=lambda in_peft: card(
                self.job.recipe,
                self.spec,
                self.models.adapter.method,
                asdict(result),
                fsio.read_json(self.run / "lock.json", artifacts.PUT_BACK),
                Place(run=self.run.name),
                loads_in_peft=in_peft,
                is_model=self.models.adapter.trains_base,
                stands_on=self.bound.stands_on,
                mergeable=self.models.adapter.mergeable,
            ),
            tokenizer=self.models.tokenizer if made else None,
        )

    def _groups(self) -> Sequence[Mapping[str, Any]]:
        from llmft.training.optimizer import decay_groups, joined_groups

        parameters = [p for p in self.models.model.parameters() if p.requires_grad]
        added: Sequence[Mapping[str, Any]] = ()
        own = self.models.adapter.parameter_groups(self.models.model, self.train)
        if own is not None:
            own = groups_of(self.models.adapter, own)
        if isinstance(self.work, Alignment):
            added = groups_of(self.work, self.work.parameter_groups(self.models.model, self.train))
        groups = joined_groups(parameters, own, added)
        return decay_groups(groups, self.models.model, self.train)

    def _info(self, items: Sequence[Any], steps: int) -> StageInfo:
        trainable, total = count_parameters(self.models.model)
        count = tokens = trained = 0
        for item in items:
            count += len(item) if isinstance(item, tuple) else 1
            for row in token_rows(item):
                tokens += len(row.input_ids)
                trained += row.n_labels
        return StageInfo(
            name=self.name,
            adapter=self.models.adapter.method if self.models.adapter else "",
            alignment=self.work.method,
            trainable_parameters=trainable,
            total_parameters=total,
            rows=count,
            tokens=tokens,
            trained_tokens=trained,
            steps=steps,
            notes=tuple(self.log.notes),
            samples_rows=bool(items) and isinstance(items[0], EncodedPrompt),
        )

    def _on_step(self, step: int, steps: int, metrics: Mapping[str, float], log: bool) -> None:
        self._tell(f"step {step} of {steps} of the stage '{self.name}'")
        if self.copier is not None:
            self.copier.heard()
        self.trackers.progress(Progress(self.name, "train", step, steps, metrics, log))
