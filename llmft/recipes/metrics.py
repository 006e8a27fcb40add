"""The metrics that a stage is scored by: loss, those of its data, and installed ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError

from llmft.api import Alignment, MetricConfig, MetricFunction
from llmft.api.errors import LlmftError, PluginError
from llmft.recipes.asking import asked, clash
from llmft.recipes.methods import Blocks
from llmft.recipes.sources import metric_of_source, scored_as, source_names
from llmft.recipes.tree import KeyPath, visible
from llmft.registry.return_checks import score_names
from llmft.system.nearest import did_you_mean

if TYPE_CHECKING:
    from llmft.api.evaluate_settings import EvaluateSettings, ScoredTaskConfig
    from llmft.recipes.recipe import Stage

LOSS_METRICS = ("loss", "perplexity")
"""The metrics that every data set has."""


def scores_loss(settings: EvaluateSettings | ScoredTaskConfig) -> bool:
    """Return whether the loss of held-out rows is computed."""
    return any(isinstance(one, str) and one in LOSS_METRICS for one in settings.metrics)


def scores_token_loss(settings: EvaluateSettings, work: Any) -> bool:
    """Return whether the loss of held-out rows' tokens is computed. work: what the stage does."""
    return scores_loss(settings) and not getattr(work, "own_loss", False)


def scores_answers(settings: EvaluateSettings | ScoredTaskConfig) -> bool:
    """Return whether answers to held-out rows are generated and scored."""
    return any(not isinstance(one, str) or one not in LOSS_METRICS for one in settings.metrics)


def chosen_metrics(
    metrics: Sequence[str | MetricConfig], of_data: Collection[str]
) -> list[str | MetricConfig]:
    """Return the metrics that are methods of their own, by name or as a block.

    metrics: all that a stage asks for. of_data: the names of the data's metrics, which go before
    installed ones of the same name.
    """
    return [
        one
        for one in metrics
        if not isinstance(one, str) or (one not in LOSS_METRICS and one not in of_data)
    ]


def direction_of(
    metric: str, work: Any, directions: Mapping[str, bool], sources: Sequence[str] = ()
) -> bool | None:
    """Return whether more of a metric is better, by what it says of itself; None: it does not.

    work: the class of a stage's alignment. directions: of the metrics of answers. sources: the
    names of the data's sources, each of which is also scored alone.
    """
    own: Mapping[str, bool] = getattr(work, "greater_is_better", {})
    for name in (metric, metric_of_source(metric, sources)):
        if name in own:
            return own[name]
        if name in LOSS_METRICS:
            return False
        if name in directions:
            return directions[name]
    return None


def check_metrics(
    base: KeyPath, stage: Stage, of_data: Sequence[str], work: Any, blocks: Blocks
) -> None:
    """The metrics that a stage asks for must be known, and each score must have its own name.

    of_data: the metrics that all of its data sets have. work: the class of what it does, or None.
    """
    if stage.data is None or not (stage.evaluate or stage.metrics):
        return
    scored: list[str] = []
    functions: list[str] = []
    for index, entry in enumerate(stage.metrics):
        path = (*base, "evaluate" if stage.evaluate else "task", "metrics", index)
        if getattr(work, "own_loss", False) and entry != "loss":
            name = entry if isinstance(entry, str) else entry.method
            what = f"'{name}' scores tokens or answers, and '{work.method}' predicts none"
            own = ", ".join(work.greater_is_better)
            fix = f"write metrics: [loss]; {own} are scored without being named"
            clash(blocks, "E043", [path], what, fix)
            continue
        if isinstance(entry, str) and (entry in LOSS_METRICS or entry in of_data):
            names: Sequence[str] = (entry,)
            clashing = set(functions)
        else:
            made = _made(entry, path, of_data, blocks)
            names = (asked(blocks, path, lambda made=made: score_names(made)) or ()) if made else ()
            clashing = {*scored, *LOSS_METRICS}
            functions += names
        if twice := sorted(clashing & set(names)):
            what = f"two scores would be called '{twice[0]}'"
            clash(blocks, "E040", [path], what, "give this metric another name: {method: ..., name:"
                  " ...}")  # fmt: skip
        scored += names
    _check_names(base, stage, [*of_data, *functions], work, blocks)
    if work is not None and stage.alignment is not None:
        _check_best(base, stage, work, scored, [*of_data, *functions], blocks)


def check_scored_kind(
    base: KeyPath, stage: Stage, data: KeyPath, kind: str | None, blocks: Blocks
) -> None:
    """Rows that ask nothing have no answer to score, and prompts alone have no loss.

    data: where their data set's block is. kind: of the rows; None: not known.
    """
    for index, entry in enumerate(stage.metrics):
        path = (*base, "evaluate" if stage.evaluate else "task", "metrics", index)
        if path not in blocks.classes and not isinstance(entry, str):
            continue  # a stand-in for a block that is reported already
        name = entry if isinstance(entry, str) else entry.method
        if name in LOSS_METRICS and kind == "prompt":
            what = f"'{name}' is of right answers, and these rows are prompts alone"
            fix = "write metrics without it, or name a data set that gives completions"
        elif name not in LOSS_METRICS and kind == "text":
            what = f"'{visible(name)[:80]}' scores answers, and rows of text ask nothing"
            fix = "write metrics: [loss], or name the columns of prompts and answers"
        else:
            continue
        clash(blocks, "E042", [path, (*data, "method")], what, fix)


def _made(
    entry: str | MetricConfig, path: KeyPath, of_data: Sequence[str], blocks: Blocks
) -> MetricFunction[Any] | None:
    """Return a metric that is a method of its own, or None where that is noted as a fault."""
    if isinstance(entry, str):
        installed = blocks.registry.names("metric")
        if entry not in installed:
            known = [*LOSS_METRICS, *dict.fromkeys([*of_data, *installed])]
            what = f"no metric is called '{entry}'; there is {', '.join(known)}"
            clash(blocks, "E043", [path], what, did_you_mean(entry, known) or "use one of these")
            return None
        try:
            blocks.classes[path] = blocks.registry.method("metric", entry)
        except PluginError as error:
            blocks.tree.adopt(error.faults, path)
            return None
    cls = blocks.classes.get(path)
    if cls is None:
        return None
    if not isinstance(entry, str):
        return cast("MetricFunction[Any] | None", asked(blocks, path, lambda: cls(entry)))
    try:
        config = cls.Config.model_validate({"method": entry})
    except ValidationError as error:
        missing = [str(one["loc"][0]) for one in error.errors() if one["type"] == "missing"]
        what = f"the metric '{visible(entry)[:80]}' has settings that must be given"
        fix = f"write {{method: {entry}, {missing[0] if missing else '...'}: ...}}"
        clash(blocks, "E021", [path], what, fix)
        return None
    except LlmftError as error:  # such as a package that it needs
        blocks.tree.adopt(error.faults, path)
        return None
    return cast("MetricFunction[Any] | None", asked(blocks, path, lambda: cls(config)))


def _check_names(
    base: KeyPath, stage: Stage, answered: Sequence[str], work: Any, blocks: Blocks
) -> None:
    """The scores of single sources may not be called as other scores are."""
    assert stage.data is not None
    known = {*LOSS_METRICS, *answered, *getattr(work, "greater_is_better", {})}
    alone = {
        scored_as(source, metric)
        for source in source_names(stage.data)
        for metric in (*LOSS_METRICS, *answered)
    }
    if twice := sorted(alone & known):
        what = f"a source's own score would be called '{twice[0]}', as another score is"
        clash(blocks, "E040", [(*base, "data")], what, "give that source another name")


def _check_best(
    base: KeyPath,
    stage: Stage,
    work: Any,
    asked_for: Sequence[str],
    answered: Sequence[str],
    blocks: Blocks,
) -> None:
    """The metric that chooses the best evaluation must be scored during training.

    An alignment may score more than it declares a direction of: that is seen in a run.
    asked_for: the scores that the recipe asks for. answered: the metrics of answers there are.
    """
    settings, sources = stage.evaluate, source_names(stage.data) if stage.data else ()
    assert settings is not None
    metric, key = settings.best_metric, (*base, "evaluate", "metric_for_best_model")
    if metric is None:
        return
    own = work.greater_is_better
    scored = [*asked_for, *(name for name in own if name not in asked_for)]
    scored += [scored_as(source, name) for source in sources for name in scored]
    everywhere = (*LOSS_METRICS, *answered)
    unsaid = own and settings.greater_is_better is None
    known = work.evaluate is Alignment.evaluate or metric in everywhere or unsaid
    if metric not in scored and known:
        what = f"'{metric}' is to choose the best evaluation, and this stage scores"
        what += f" {', '.join(scored) or 'nothing'}"
        fix = did_you_mean(metric.removeprefix("eval_"), scored)
        if metric in everywhere:
            fix = f"add {metric} to evaluate.metrics"
        where = [key] if settings.metric_for_best_model else [(*base, "evaluate", "metrics")]
        clash(blocks, "E043", where, what, fix or "name one of these in metric_for_best_model")
        return
    plain = metric_of_source(metric, sources)
    draws = asked(blocks, (*base, "alignment"), lambda: work(stage.alignment).evaluate_generates)
    generated = plain in answered or (draws and plain in own)
    if generated and plain not in LOSS_METRICS and settings.generate_every is None:
        what = f"'{metric}' scores generated answers, and none are generated during training"
        clash(blocks, "E040", [key], what, "write generate_every: 1, or choose by another metric")
