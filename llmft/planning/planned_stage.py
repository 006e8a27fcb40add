"""A stage that is planned: the parts of a running stage, with a model that has no numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmft.api import Objective, OnlineObjective, RowScores, ScoredTaskConfig, StageResult
from llmft.api.errors import EnvironmentFault
from llmft.engine.stage import StageRunner
from llmft.engine.trackers import Trackers
from llmft.modeling.base_model import BaseModel
from llmft.modeling.batching import is_padding_free
from llmft.modeling.counting import tokens_in
from llmft.modeling.sharded_layers import owner_of
from llmft.planning.batch_choice import columns_in
from llmft.planning.evaluation_cost import follow_scores, judge
from llmft.planning.memory_tracker import CALLBACKS
from llmft.planning.plan_state import PlanState, SampledCounts
from llmft.planning.planned_data import PlannedData
from llmft.planning.planned_models import PlannedModels
from llmft.planning.planned_sampler import PlannedSampler
from llmft.planning.processes import ALONE, Processes
from llmft.planning.training_cost import train_steps
from llmft.recipes.job import BoundStage, Job
from llmft.runs.artifacts import ROWS
from llmft.training.step_plan import refuse_endless_warmup


class PlannedStage(StageRunner):
    """Lets an alignment do what it would do, on the rows that take the most memory."""

    planned = True

    def __init__(
        self,
        job: Job,
        bound: BoundStage,
        base: BaseModel,
        *,
        folder: Path,
        in_ram: bool,
        processes: Processes = ALONE,
    ) -> None:
        self.state = PlanState(in_ram, processes)
        super().__init__(
            job, bound, base, run=folder.parent, folder=folder, dataset=bound.dataset,
            trackers=Trackers([]),
        )  # fmt: skip

    def _parts(self) -> tuple[Any, Any, Any]:
        models = PlannedModels(self.job, self.bound, self.base, self.run, self.log)
        data = PlannedData(self.bound, self.dataset, self.base, self.job.recipe.seed, self.log)
        models.state = data.state = self.state
        data.models = models
        sampler = PlannedSampler(models, data, self.log)
        sampler.state = self.state
        return models, data, sampler

    def row_scores(self, *, base: bool = False) -> RowScores:
        """Follow what a task's scores take, on the rows that take the most memory."""
        asked, state = self.spec.task, self.state
        assert isinstance(asked, ScoredTaskConfig)  # no other task asks
        if base:
            state.memory.begin("load the base")
        model = self.models.base_model() if base else self.models.model
        size = follow_scores(self, asked, model, " the base" if base else "")
        if size and not state.assumed:
            had, count = state.sampled.answers if state.sampled else 0, len(self.data.rows())
            state.sampled = SampledCounts(count, had + count, asked.max_new_tokens)
            state.computes(decoded=(had + count, size, asked.max_new_tokens))
        return RowScores({})

    def stage_folder(self, name: str) -> Path:
        """Return where an earlier stage of this plan has written made-up rows, if it did."""
        folder = self.folder.parent / name
        if not (folder / ROWS).is_file():
            raise EnvironmentFault("E201", f"the stage '{name}' has not made them yet")
        return folder

    def fit_online(self, prompts: Sequence[Any], objective: OnlineObjective) -> StageResult:
        """Compute what the loop would in one step, on the heaviest prompts."""
        size = self.train.per_device_train_batch_size
        self._refuse_endless_warmup(getattr(objective, "rates_per_step", 1))
        batch = self._batches(prompts)[0]
        memory = self.state.memory
        if self.spec.evaluate is not None:
            judge(self)
        memory.begin("rollout")
        processes = self.state.processes
        asked = batch * self.train.accumulation(processes.count)  # of one process
        items = list(objective.sample_rollouts(asked, range(len(asked)), 0, lambda: False))
        memory.begin("train")
        total = len(items) * processes.count
        self._count(len(asked) * processes.count, total)
        batches = [items[:size]]
        self._train_steps(batches, objective, online=True)
        # Asked last: an objective may take it as a sign that its first update is over.
        trained = processes.share(sum(len(update) for update in objective.updates(total, 0)))
        self.state.computes(passes_per_step=trained / max(len(batches[0]), 1))
        memory.begin("save")
        return StageResult(produces=self.work.produces)

    def _count(self, prompts: int, answers: int) -> None:
        """Keep how many answers all steps sample, where a step samples so many."""
        counts = self.state.counts
        if counts is None or not prompts:
            return
        steps = counts.steps
        longest = self.state.max_new_tokens
        self.state.sampled = SampledCounts(steps * prompts, steps * answers, longest)

    def fit(self, items: Sequence[Any], objective: Objective) -> StageResult:
        """Compute what the loop would, on the heaviest batches only."""
        self._refuse_endless_warmup()
        batches, memory = self._batches(items), self.state.memory
        if self.spec.evaluate is not None:
            judge(self)
        memory.begin("train")
        self._train_steps(batches, objective)
        counts = self.state.counts
        accumulated = self.train.accumulation(self.state.processes.count)
        passes = counts.passes_per_step if counts else accumulated
        self.state.computes(passes_per_step=passes)
        memory.begin("save")
        return StageResult(produces=self.work.produces)

    def _train_steps(
        self, batches: list[list[Any]], objective: Objective, *, online: bool = False
    ) -> None:
        asked, memory = self.spec.evaluate, self.state.memory

        def evaluate() -> None:
            if asked is None or asked.eval_strategy == "no":
                return
            gives = any(one.gives_weights for one in self.bound.callbacks)
            trained = [p for p in self.models.model.parameters() if p.requires_grad and gives]
            with memory.making(CALLBACKS):  # the trained weights, while others are in use
                held = [parameter.clone() for parameter in trained]
            judge(self, in_training=True)
            del held

        groups = self._groups()
        optimizer = self.bound.optimizer
        flops = train_steps(
            self.models.model, batches, objective, self.train, groups, optimizer, memory, evaluate,
            self.bound.callbacks, self.state.processes,
        )  # fmt: skip
        trained = [p for p in self.models.model.parameters() if p.requires_grad]
        chosen, counts = self.state.chosen, self.state.counts
        padded = not is_padding_free(self.models.model)
        tokens = sum(
            columns_in(batch) if padded else sum(map(tokens_in, batch)) for batch in batches
        )
        self.state.computes(
            train_flops=sum(flops),
            tokens=0 if online else tokens,
            padding=counts.padding if counts and padded else 1.0,
            items=sum(map(len, batches)),
            prepare_flops=memory.flops["prepare"],
            prepared_items=len(chosen.items) if chosen else 0,
            scored_flops=memory.flops["evaluate"],
            rollout_flops=memory.flops["rollout"],
            summed_bytes=sum(p.nbytes for p in trained if owner_of(p) is None),
        )

    def _refuse_endless_warmup(self, rates_per_step: int = 1) -> None:
        if (counts := self.state.counts) is not None:
            steps = counts.steps
            last = self.bound.schedule.last_steps()
            refuse_endless_warmup(self.name, self.train, steps, last, rates_per_step)

    def _batches(self, items: Sequence[Any]) -> list[list[Any]]:
        chosen = self.state.chosen
        if chosen and len(items) == len(chosen.items):
            return chosen.batches_of(items)
        by_tokens = self.train.per_device_train_tokens is not None  # then they are one pass
        return [list(items if by_tokens else items[: self.train.per_device_train_batch_size])]
