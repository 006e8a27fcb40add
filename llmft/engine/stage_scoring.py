"""How a stage is scored on its held-out rows: before, during and after training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llmft.api import Alignment, Encoded, Progress, Prompt, RowScores, ScoredTaskConfig
from llmft.api.errors import Fault, RecipeError
from llmft.data.mixed_rows import as_mixed
from llmft.data.usable_rows import Rows
from llmft.evaluation.intervals import Score, differences_of, scores_of
from llmft.recipes.metrics import (
    direction_of,
    scores_answers,
    scores_loss,
    scores_token_loss,
)
from llmft.recipes.sources import scored_as, source_names
from llmft.registry.return_checks import row_values_of, score_names
from llmft.runs import artifacts
from llmft.system import fsio

if TYPE_CHECKING:
    from llmft.api.evaluate_settings import EvaluateSettings
    from llmft.engine.stage import StageRunner
    from llmft.evaluation.evaluation import RowLosses, Scores
    from llmft.training.validation import Validation


ROW_SCORES = "scores.json"
"""The value of each held-out row, before and after training, for each metric that has some."""


class StageScoring:
    """Scores a stage's model as it is, and tells the trackers."""

    def __init__(self, stage: StageRunner) -> None:
        self.stage, self.asked = stage, stage.spec.evaluate
        self.steps = 0
        self.by_row: dict[str, dict[str, list[float]]] = {}
        self.generation: dict[str, Any] = {}

    def score(self, when: str) -> dict[str, float]:
        """Return the scores of the model as it is now, `before` or `after` training.

        Several processes share the work, batch by batch; the first one tells the result.
        """
        from llmft.system import distributed

        stage = self.stage
        if stage.data.split[1] is None or self.asked is None:
            return {}
        stage.log.when = when
        with distributed.dealing_out():
            made, by_row = self._scores(when, generate=True, samples=self.asked.samples)

        def keep() -> dict[str, float]:
            self.by_row[when] = by_row
            fsio.write_json(stage.folder / ROW_SCORES, self.by_row)
            stage.trackers.scored(stage.name, when, made)
            return made

        return distributed.on_rank_zero(keep)

    def go_on(self) -> None:
        """Take up the rows' scores of the run that is resumed."""
        path = self.stage.folder / ROW_SCORES
        if path.is_file():
            self.by_row = fsio.read_json(path, artifacts.PUT_BACK)

    def intervals(
        self, before: Mapping[str, float], after: Mapping[str, float]
    ) -> dict[str, dict[str, Score]]:
        """Return every score with its rows and its 95 % interval, and the paired differences."""
        from llmft.evaluation.evaluation import ranges_of

        if not after:
            return {}
        rows = len(self.stage.data.held_out())
        names = source_names(self.stage.spec.data) if self.stage.spec.data else ()
        ranges = ranges_of(self.stage.dataset, self.stage.bound.metrics, names)
        ranges |= getattr(self.stage.work, "value_ranges", {})
        found = {
            when: {
                name: {"value": value, "low": None, "high": None, "n": rows}
                for name, value in metrics.items()
            }
            | scores_of(self.by_row.get(when, {}), ranges)
            for when, metrics in (("before", before), ("after", after))
        }
        values = (self.by_row.get(when, {}) for when in ("before", "after"))
        return {**found, "difference": differences_of(*values)}

    def validation(self, steps: int, before: Mapping[str, float]) -> Validation | None:
        """Return the evaluations during a training of so many steps; None where none is asked.

        before: the scores before training. Raises RecipeError where the best one is to be chosen by
        a metric that is not among them, or has no direction.
        """
        asked = self.asked
        if asked is None or asked.eval_strategy == "no":
            return None
        from llmft.training.validation import Validation

        self.steps = steps
        greater = False
        if asked.best_metric is not None:
            greater = self._greater_is_better(asked.best_metric, before)
        return Validation(asked, self.score_step, greater)

    def score_step(
        self, step: int, *, generate: bool, stopping: Callable[[], bool]
    ) -> dict[str, float] | None:
        """Return the scores after a step of training, to which nothing changes by it.

        None where `stopping` said so before they were there. See `llmft.training.Scorer`.
        """
        from llmft.modeling.decoding import Stopped
        from llmft.system import distributed

        stage = self.stage
        made: dict[str, float] | None = None
        several = distributed.count() > 1  # then all stop at one place, or they would wait for ever
        with (
            suppress(Stopped, distributed.Halted),
            distributed.dealing_out(stopping),
            self._looking_on((lambda: False) if several else stopping),
        ):
            made = self._scores("", generate=generate, samples=0)[0]
        found = distributed.on_rank_zero(lambda: made)
        if found is not None:
            told = Progress(stage.name, "score", step, self.steps, found, logged=True)
            stage.trackers.progress(told)
        return found

    @contextmanager
    def _looking_on(self, stopping: Callable[[], bool]) -> Iterator[None]:
        """Put random numbers, the modules' modes and the log back to where they are, after it."""
        from llmft.system.rng import isolated_rng

        model, log = self.stage.models.model, self.stage.log
        modes = [(module, module.training) for module in model.modules()]
        with isolated_rng(), log.aside(stopping):
            try:
                yield
            finally:
                for module, training in modes:
                    module.training = training

    def _scores(
        self, when: str, *, generate: bool, samples: int
    ) -> tuple[dict[str, float], dict[str, list[float]]]:
        """Return the metrics, and of those that are means over rows the value of each row."""
        stage, asked = self.stage, self.asked
        rows = stage.data.split[1]
        assert rows is not None
        assert asked is not None
        made = self._of_rows(
            rows,
            lambda: self._encoded,
            asked,
            stage.models.model,
            tokens=scores_token_loss(asked, stage.work),
            answers=generate and scores_answers(asked),
            samples=samples,
            say=when == "before",
            intervals=bool(when),
        )
        found, by_row = made.metrics, made.values
        stage.log.samples += [{"when": when, **sample} for sample in made.samples]
        work = stage.work
        if isinstance(work, Alignment) and (generate or not work.evaluate_generates):
            metrics, values_of = row_values_of(work, work.evaluate(stage))
            found |= metrics
            by_row |= values_of
            for source, numbers in rows.by_source(stage.data.held_out_origins).items():
                for name, values in values_of.items():
                    if name in work.corpus_metrics:
                        continue
                    if len(values) == len(stage.data.held_out_origins):
                        of_source = [values[number] for number in numbers]
                        by_row[scored_as(source, name)] = of_source
                        found[scored_as(source, name)] = math.fsum(of_source) / len(of_source)
        return found, by_row

    def _of_rows(
        self,
        rows: Rows,
        encoded: Callable[[], tuple[Sequence[Encoded], str]],
        asked: EvaluateSettings | ScoredTaskConfig,
        model: Any,
        *,
        tokens: bool,
        answers: bool,
        samples: int,
        say: bool,
        intervals: bool = True,
    ) -> Scores:
        """Return a model's scores on rows. encoded: them as token ids, and what is to be said.

        tokens, answers: whether the loss is computed, and whether answers are generated.
        say: whether a person is told what became of rows that are too long.
        """
        from llmft.evaluation import evaluation, generation

        stage = self.stage

        def losses() -> tuple[Sequence[str], RowLosses]:
            items, note = encoded()
            if say and note:
                stage.log.note(f"to compute the loss, {note}")
            stage.log.progress("evaluate", 0, len(items))
            of_rows = evaluation.row_losses(
                model,
                items,
                stage.train.per_device_eval_batch_size,
                lambda done, total: stage.log.progress("evaluate", done, total),
            )
            return [item.origin for item in items], of_rows

        def answer(prompts: Sequence[Prompt]) -> list[str]:
            answers: list[str] = stage.sampler.generate(prompts, asked.max_new_tokens, model=model)
            return answers

        if answers:
            tokenizer = stage.models.tokenizer
            self.generation = generation.settings(model, tokenizer, asked.max_new_tokens)
        return evaluation.score_rows(
            rows,
            stage.dataset,
            asked.metrics,
            stage.bound.metrics,
            losses=losses if tokens else None,
            answer=answer if answers else None,
            samples=samples,
            intervals=intervals,
        )

    def of_task(self, asked: ScoredTaskConfig, *, base: bool) -> RowScores:
        """Return the scores of the stage's rows by its task's settings.

        base: of the base model alone.
        """
        from llmft.evaluation.evaluation import ranges_of

        stage = self.stage
        rows = as_mixed(stage.data.split[0])
        made = self._of_rows(
            rows,
            lambda: self._as_tokens(rows),
            asked,
            stage.models.base_model() if base else stage.models.model,
            tokens=scores_loss(asked),
            answers=scores_answers(asked),
            samples=len(rows.rows),
            say=not base,
        )
        ranges = ranges_of(stage.dataset, stage.bound.metrics, list(rows.sources))
        return RowScores(scores_of(made.values, ranges), made.values, made.samples, self.generation)

    @cached_property
    def _encoded(self) -> tuple[Sequence[Encoded], str]:
        """The held-out rows as token ids, and what is to be said of them."""
        return self._as_tokens(self.stage.data.split[1])

    def _as_tokens(self, rows: Rows) -> tuple[Sequence[Encoded], str]:
        from llmft.evaluation import evaluation

        answered = evaluation.as_answered(rows.rows)
        encoded, report = self.stage.data.encoder.encode(answered, self.stage.train)
        return encoded, report.note()

    def _greater_is_better(self, metric: str, before: Mapping[str, float]) -> bool:
        asked, stage = self.asked, self.stage
        assert asked is not None
        if metric not in before:
            what = f"nothing scores '{metric}' in this stage (there is: {', '.join(before)})"
            raise RecipeError.of([self._fault(what, "name one of these")])
        if asked.greater_is_better is not None:
            return asked.greater_is_better
        names = source_names(stage.spec.data) if stage.spec.data else ()
        directions = dict.fromkeys(stage.dataset.metrics, True)
        for made in stage.bound.metrics:
            directions |= dict.fromkeys(score_names(made), made.greater_is_better)
        direction = direction_of(metric, type(stage.work), directions, names)
        if direction is None:
            what = f"'{metric}' does not say whether more of it is better"
            raise RecipeError.of([self._fault(what, "write greater_is_better: true, or false")])
        return direction

    def _fault(self, what: str, fix: str) -> Fault:
        key = ("stages", self.stage.job.index_of(self.stage.name), "evaluate")
        return self.stage.job.fault("E043", (*key, "metric_for_best_model"), what, fix)
