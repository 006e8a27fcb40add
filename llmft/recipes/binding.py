"""From a checked recipe to a job: each method's class becomes an object, each reference a stage."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llmft.api import Dataset, DatasetConfig, MetricConfig, MetricFunction, RewardFunction
from llmft.api.errors import CheckpointError, LlmftError, RecipeError
from llmft.api.kinds import Kind
from llmft.api.train_settings import TrainSettings
from llmft.recipes.job import BoundStage, Job, Source, Upstream
from llmft.recipes.methods import OF_TRAINING, Methods, nested_methods
from llmft.recipes.metrics import chosen_metrics
from llmft.recipes.recipe import Recipe, Stage
from llmft.recipes.references import ANOTHER_RUN, Reference, references
from llmft.recipes.rounds import Rounds
from llmft.recipes.sources import sources_of
from llmft.recipes.training_methods import config_of, named_method
from llmft.system.plain_files import NOT_OURS, refuse_links_below

RESOLVED = "resolved.yaml"
"""The recipe in a run's folder with every default written out."""
MODELS = ("policy", "reward_model", "classifier")
"""What a stage produces that is an adapter on a base model."""


class Binder:
    """Makes the objects of one recipe. `registry` ends here: a job no longer knows it."""

    def __init__(self, registry: Methods, other_runs: frozenset[Path] = frozenset()) -> None:
        self.registry = registry
        self._other_runs = other_runs  # those whose recipes are being read, one for the other
        self._jobs: dict[Path, Job] = {}

    def bind(self, recipe: Recipe, written: Recipe, rounds: Rounds, source: Source) -> Job:
        """Return the job of a recipe whose repeated stages are written out."""
        named = references(recipe)
        bound: dict[str, BoundStage] = {}
        for number, stage in enumerate(recipe.stages):
            own = [reference for reference in named if reference.stage == number]
            bound[stage.name] = self._stage(recipe, stage, own, bound)
        return Job(
            recipe, written, rounds, tuple(bound.values()),
            make_trackers=lambda: tuple(self._made("tracker", one) for one in recipe.trackers),
            records=tuple(self._records(recipe, bound)),
            hooks=lambda: self.registry.cross_cutting(recipe.plugins),
            load=self._load,
            source=source,
        )  # fmt: skip

    def _made(self, kind: str, config: Any) -> Any:
        return self.registry.method(kind, config.method)(config)

    def _stage(
        self,
        recipe: Recipe,
        stage: Stage,
        named: list[Reference],
        bound: Mapping[str, BoundStage],
    ) -> BoundStage:
        upstream = {one.target: self._upstream(recipe, one, bound) for one in named}
        adapter = None
        if stage.adapter is not None:
            adapter = self._made("adapter", stage.adapter)
        elif stage.start is not None and (start := upstream[stage.start].stage):
            adapter = start.adapter
        rewards: list[RewardFunction[Any]] = [
            self._made(kind, config)
            for _, kind, config in nested_methods(stage.work)
            if kind == "reward"
        ]
        dataset = self._dataset(stage.data) if stage.data is not None else None
        of_data = dataset.metrics if dataset is not None else ()
        return BoundStage(
            stage,
            adapter,
            self._made(stage.work_kind, stage.work),
            dataset,
            tuple(rewards),
            upstream,
            tuple(self.metric(one) for one in chosen_metrics(stage.metrics, of_data)),
            self.of_training("optimizer", stage.train),
            self.of_training("schedule", stage.train),
            tuple(self._made("callback", one) for one in stage.plugins),
        )

    def of_training(self, kind: Kind, train: TrainSettings) -> Any:
        """Return the method of a kind that training settings name, such as the schedule."""
        cls = self.registry.method(kind, named_method(kind, train))
        return cls(config_of(kind, train, cls))

    def metric(self, asked: str | MetricConfig) -> MetricFunction[Any]:
        """Return a metric by its name, with its own defaults, or by its block.

        Raises RecipeError where it has settings that must be given.
        """
        if isinstance(asked, str):
            config = self.registry.method("metric", asked).Config
            try:
                asked = config.model_validate({"method": asked})
            except ValidationError as error:
                what = f"the metric '{asked}' has settings that must be given"
                fix = f"write it as a block in a recipe's metrics: {{method: {asked}, ...}}"
                raise RecipeError("E021", what, fix=fix) from error
        made: MetricFunction[Any] = self._made("metric", asked)
        return made

    def _dataset(self, data: DatasetConfig) -> Dataset[Any]:
        """Return a data set; one that has sources has the metrics that all of them share."""
        made: Dataset[Any] = self._made("dataset", data)
        sources = [self._dataset(config) for _, config in sources_of(data)]
        if sources:
            made.sources = tuple(sources)
            made.metrics = {
                name: metric for name, metric in sources[0].metrics.items()
                if all(name in source.metrics for source in sources)
            }  # fmt: skip
        return made

    def _upstream(
        self, recipe: Recipe, reference: Reference, bound: Mapping[str, BoundStage]
    ) -> Upstream:
        target, produces = reference.target, reference.produces
        if not reference.is_of_another_run:
            return Upstream(target, produces, bound[target])
        run_id, _, name = target.removeprefix(ANOTHER_RUN).partition("/")
        found = sorted(Path(recipe.output_dir).glob(f"*/{run_id}"))
        if not found:
            error = CheckpointError(
                "E402",
                f"there is no run '{run_id}' under '{recipe.output_dir}'",
                fix="use the name of a run folder that 'llmft run' printed",
            )
            return Upstream(target, produces, error=error)
        if produces not in MODELS:
            return Upstream(target, produces, run=found[0])
        try:
            return Upstream(target, produces, self._other(found[0]).stage(name), found[0])
        except KeyError:
            what = f"the run '{run_id}' has no stage '{name}'"
            return Upstream(target, produces, run=found[0], error=CheckpointError("E402", what))
        except LlmftError as error:
            return Upstream(target, produces, run=found[0], error=error)

    def _load(self, path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Job:
        from llmft.recipes.load import load_recipe

        return load_recipe(path, self.registry, overrides)

    def _other(self, run: Path) -> Job:
        """Return the job of another run. Raises an LlmftError where its recipe cannot be read."""
        from llmft.recipes.load import load_recipe

        run = run.resolve()
        if run in self._other_runs:
            what = f"the runs refer to each other: '{run.name}' would start from itself"
            raise CheckpointError("E402", what)
        if run not in self._jobs:
            refuse_links_below(run, NOT_OURS)
            seen = self._other_runs | {run}
            self._jobs[run] = load_recipe(run / RESOLVED, self.registry, other_runs=seen)
        return self._jobs[run]

    def _records(self, recipe: Recipe, bound: Mapping[str, BoundStage]) -> list[Any]:
        """Return the records of the methods that a recipe names, as the lock keeps them."""
        wanted = {("tracker", tracker.method) for tracker in recipe.trackers}
        for stage in recipe.stages:
            wanted |= {(stage.work_kind, stage.work.method)}
            wanted |= {("dataset", stage.data.method)} if stage.data else set()
            wanted |= {("adapter", stage.adapter.method)} if stage.adapter else set()
            for block in (stage.work, stage.data):
                nested = nested_methods(block) if block else ()
                wanted |= {(kind, inner.method) for _, kind, inner in nested}
            blocks = [(kind, getattr(stage.train, key)) for key, kind in OF_TRAINING.items()]
            wanted |= {(kind, one.method) for kind, one in blocks if not isinstance(one, str)}
            wanted |= {("metric", made.config.method) for made in bound[stage.name].metrics}
            wanted |= {("callback", plugin.method) for plugin in stage.plugins}
        every = self.registry.records(load=False)
        return [
            record
            for record in every
            if {(record.kind, name) for name in _spellings(record)} & wanted
        ]


def _spellings(record: Any) -> tuple[str, str]:
    """Return how a recipe may name a method: by its name, or with its distribution before it."""
    return record.method, f"{record.distribution}:{record.method}"
