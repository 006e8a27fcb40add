"""Scores of a run's model, or of any model, on any data set: with intervals, row by row."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmft.api import Dataset, MetricFunction, Prompt
from llmft.api.errors import CheckpointError, LlmftError, RecipeError
from llmft.data.duplicates import Duplicates, duplicates
from llmft.data.encoding import Encoder
from llmft.data.mixed_rows import joined
from llmft.data.stage_rows import read_split, stage_rows
from llmft.data.usable_rows import Rows
from llmft.evaluation import evaluation
from llmft.evaluation.evaluation import RowLosses, ranges_of
from llmft.evaluation.intervals import Score, scores_of
from llmft.inference.answering import load_run, model_of_run, stage_with_checkpoint
from llmft.inference.trained import TrainedStage
from llmft.modeling.base_model import BaseModel, refuse_not_finite
from llmft.recipes.binding import RESOLVED, Binder
from llmft.recipes.job import BoundStage, Job
from llmft.recipes.load import load_recipe
from llmft.recipes.metrics import LOSS_METRICS
from llmft.recipes.sources import source_names
from llmft.registry.registry import Registry
from llmft.registry.return_checks import score_names
from llmft.runs import artifacts
from llmft.runs.upstream import dataset_in
from llmft.system.machine import device
from llmft.system.nearest import did_you_mean

NAME = "evaluate"
"""The stage of the recipe that is made up for a model without a run."""


@dataclass(frozen=True)
class Asked:
    """What is evaluated on what.

    data: a file, a folder or a hub id in place of the data's path; None: the run's held-out rows.
    method: the data set's, for a model without a run. metrics: none: all that the data has, and
    the loss. overrides: as `--set` takes them. base: without the adapter. step: the
    checkpoint after so many steps, for which the stage need not be finished. answers: also where
    no metric needs them.
    """

    target: str
    stage: str | None = None
    data: str | None = None
    method: str = "jsonl"
    metrics: tuple[str, ...] = ()
    split: str | None = None
    limit: int | None = None
    max_new_tokens: int | None = None
    base: bool = False
    step: int | None = None
    overrides: tuple[str, ...] = ()
    answers: bool = False


@dataclass(frozen=True)
class Evaluated:
    """What was found. scores: of each metric, the mean, its 95 % interval and its rows.

    rows: of each answer, its prompt, text and scores. notes: which rows were left out, or cut.
    learnt: how many rows, or their prompts, the run has trained on, in words; '' where none is
    known to be.
    """

    scores: Mapping[str, Score]
    rows: Sequence[Mapping[str, Any]]
    count: int
    stage: str | None
    notes: Sequence[str] = ()
    learnt: str = ""

    @property
    def metrics(self) -> dict[str, float]:
        """The means."""
        return {name: float(score["value"] or 0.0) for name, score in self.scores.items()}


def evaluate(
    asked: Asked, on_batch: Callable[[str, int, int], None] = lambda *_: None
) -> Evaluated:
    """Return the scores of a run's model, or of a model by its folder or hub id.

    Raises RecipeError where a metric or a setting is not known, CheckpointError where the run has
    no finished policy, DataError where the rows cannot be used.
    """
    run = Path(asked.target)
    if (run / "run.json").is_file():
        return _of_run(run, asked, on_batch)
    _refuse_what_is_of_runs(asked)
    if asked.data is None:
        fix = "add --data FILE, or name a run's folder"
        raise RecipeError("E090", "a model without a run has no data of its own", fix=fix)
    with tempfile.TemporaryDirectory() as folder:
        job = _made_up(asked, Path(folder))
    bound, base = job.stage(NAME), BaseModel(job.recipe.model)
    model = base.load({}, varlen=True).to(device())
    refuse_not_finite(model, base.source)
    dataset = bound.dataset
    assert dataset is not None
    return _scored(model, base, bound, dataset, _rows(bound, dataset, asked, job), asked, on_batch)


def _refuse_what_is_of_runs(asked: Asked) -> None:
    if asked.stage or asked.base or asked.step:
        what = (
            f"'{asked.target}' is not a run folder, and --stage, --step and --base are about runs"
        )
        raise CheckpointError("E402", what, fix="name a folder that 'llmft run' printed")


@dataclass(frozen=True)
class OfModel:
    """A model that is evaluated, with its base and the stage whose settings it is asked by.

    identity: says which weights these are; '' where that cannot be told cheaply.
    """

    model: Any
    base: BaseModel
    bound: BoundStage
    stage: str | None
    identity: str = ""


def model_of(asked: Asked) -> OfModel:
    """Return the model of a run, or a model by its folder or hub id, on the device.

    Raises CheckpointError where the run has no finished policy, or its files are damaged.
    """
    run = Path(asked.target)
    if not (run / "run.json").is_file():
        _refuse_what_is_of_runs(asked)
        with tempfile.TemporaryDirectory() as place:
            job = _made_up(replace(asked, data="."), Path(place))
        bound, base = job.stage(NAME), BaseModel(job.recipe.model)
        model = base.load({}, varlen=True).to(device())
        refuse_not_finite(model, base.source)
        return OfModel(model, base, bound, None)
    job = load_run(run, Registry.discover())
    folder = _stage_folder(job, run, asked)
    if asked.overrides:
        job = job.load(run / RESOLVED, asked.overrides)
    trained = TrainedStage(job, run, folder)
    identity = ""
    if asked.step is None and not asked.overrides:
        made = artifacts.result_of(folder)
        identity = f"{run.resolve().name} {made.get('fingerprint', '')} base={asked.base}"
    return OfModel(
        _model_of_run(trained, asked), trained.base, trained.bound, folder.name, identity
    )


def _stage_folder(job: Job, run: Path, asked: Asked) -> Path:
    if asked.step is None:
        return artifacts.stage_that_made(
            "policy", run, asked.stage, fix="a reward model scores texts: llmft score RUN FILE"
        )
    return stage_with_checkpoint(job, run, "policy", asked.stage, asked.step)


def _model_of_run(trained: TrainedStage, asked: Asked) -> Any:
    adapter = trained.bound.model_adapter
    return model_of_run(
        trained.job,
        trained.bound,
        trained.base,
        trained.folder,
        varlen=adapter is None or adapter.supports_packing,
        with_adapter=not asked.base,
        step=asked.step,
    )


def _of_run(run: Path, asked: Asked, on_batch: Callable[[str, int, int], None]) -> Evaluated:
    job = load_run(run, Registry.discover())
    folder = _stage_folder(job, run, asked)
    written = job.rounds[folder.name][0] if folder.name in job.rounds else folder.name
    overrides = list(asked.overrides)
    if asked.data is not None:
        _refuse_several(job, written)
        overrides.append(f"stages.{written}.data.path={json.dumps(asked.data)}")
    if overrides:
        job = job.load(run / RESOLVED, overrides)
    trained = TrainedStage(job, run, folder)
    bound, dataset = trained.bound, dataset_in(trained.bound, run)
    if dataset is None:
        what = f"stage '{folder.name}' has no data set"
        raise RecipeError("E090", what, fix="name a stage that trains: --stage")
    rows = _rows(bound, dataset, asked, job)
    learnt = ""
    if not asked.base and (asked.data is not None or asked.split is not None):
        learnt = _learnt(load_run(run, Registry.discover()), run, folder.name, rows)
    model = _model_of_run(trained, asked)
    found = _scored(model, trained.base, bound, dataset, rows, asked, on_batch)
    return replace(found, learnt=learnt)


def _learnt(job: Job, run: Path, name: str, rows: Rows) -> str:
    """Return how many rows a stage and those that it starts from have trained on, in words.

    Their rows are read again, where they are on this machine and can be; else '' says nothing.
    """
    said = []
    bound: BoundStage | None = job.stage(name)
    while bound is not None:
        found = _both(bound, dataset_in(bound, run), job, rows)
        if found is not None and found.between:
            said.append(
                f"{found.between:,} of {found.judged:,} rows are training rows of '{bound.name}',"
                " so the scores are better than on unseen rows"
            )
        if found is not None and found.asked:
            said.append(
                f"{found.asked:,} of {found.judged:,} rows have the prompt of training rows of"
                f" '{bound.name}', so the scores are better than on unseen prompts"
            )
        bound = bound.start.stage if bound.start else None
    return "; ".join(said)


def _both(
    bound: BoundStage, dataset: Dataset[Any] | None, job: Job, rows: Rows
) -> Duplicates | None:
    if dataset is None or dataset.config.streaming or not dataset.is_local():
        return None
    encoder = BaseModel(job.recipe.model).encoder
    try:
        train, _ = stage_rows(bound.spec, dataset, job.recipe.seed, encoder)
    except LlmftError:  # they are not here any more
        return None
    return duplicates(train.rows, rows.rows)


def _refuse_several(job: Job, stage: str) -> None:
    data = job.stage(stage).spec.data
    if data is not None and source_names(data):
        what = f"stage '{stage}' reads several sources, and --data would be read as one of them"
        fix = f"--set 'stages.{stage}.data={{method: jsonl, path: FILE}}' --split train"
        raise RecipeError("E090", what, fix=fix)


def _made_up(asked: Asked, folder: Path) -> Job:
    """Return a job with one stage whose data set is the one that is asked for."""
    recipe = {
        "recipe": 1, "name": NAME, "model": {"path": asked.target},
        "stages": [{"name": NAME, "adapter": {"method": "lora"}, "alignment": {"method": "sft"},
                    "data": {"method": asked.method, "path": asked.data}}],
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), "utf-8")
    return load_recipe(path, Registry.discover(), asked.overrides)


def _rows(bound: BoundStage, dataset: Dataset[Any], asked: Asked, job: Job) -> Rows:
    def encoder() -> Encoder:
        return BaseModel(job.recipe.model).encoder()

    if asked.data is None and asked.split is None:
        held_out = stage_rows(bound.spec, dataset, job.recipe.seed, encoder)[1]
        if held_out is None:
            what = f"stage '{bound.name}' holds no rows out"
            raise RecipeError("E090", what, fix="add --data FILE, or --split NAME")
        if held_out.sources:
            return joined(held_out.sources, asked.limit)
        return replace(held_out, rows=held_out.rows[: asked.limit])
    with _in_options(asked):
        return read_split(bound.spec, dataset, asked.split, asked.limit)


@contextmanager
def _in_options(asked: Asked) -> Iterator[None]:
    """Let a suggested fix name the options that were given in place of the recipe's keys."""
    said = {"data.path": "--data"} if asked.data is not None else {}
    said |= {"data.split": "--split"} if asked.split is not None else {}
    try:
        yield
    except LlmftError as error:
        faults = []
        for fault in error.faults:
            fix = fault.fix
            for key, option in said.items():
                fix = fix.replace(key, option)
            faults.append(replace(fault, fix=fix))
        raise type(error).of(faults) from error


def _metrics(
    bound: BoundStage, dataset: Dataset[Any], asked: Asked
) -> tuple[list[str], list[MetricFunction[Any]]]:
    """Return what the scores are called that are wanted, and the metrics that are methods.

    A name means the recipe's own metric of that name, with its settings; else one of the data, or
    an installed one with its defaults.
    """
    told = bound.spec.evaluate
    own = {name: made for made in bound.metrics for name in score_names(made)}
    called = {made.config.name or type(made).method: made for made in bound.metrics}
    usual = [one for one in told.metrics if isinstance(one, str)] if told else []
    usual = usual if told else ["loss", *dataset.metrics]
    wanted = asked.metrics or dict.fromkeys([*usual, *own])
    names: list[str] = []
    found: list[MetricFunction[Any]] = []
    for name in wanted:
        made = own.get(name) or called.get(name)
        if made is None and name not in (*LOSS_METRICS, *dataset.metrics):
            made = _installed(name, [*LOSS_METRICS, *dataset.metrics, *own])
        names += score_names(made) if made is not None else (name,)
        if made is not None and made not in found:
            found.append(made)
    return list(dict.fromkeys(names)), found


def _installed(name: str, others: Sequence[str]) -> MetricFunction[Any]:
    registry = Registry.discover()
    installed = registry.names("metric")
    if name not in installed:
        known = dict.fromkeys([*others, *installed])
        what = f"no metric is called '{name}'; there is {', '.join(known)}"
        fix = did_you_mean(name, list(known)) or "use one of these"
        raise RecipeError("E043", what, fix=fix)
    return Binder(registry).metric(name)


def _scored(
    model: Any,
    base: BaseModel,
    bound: BoundStage,
    dataset: Dataset[Any],
    rows: Rows,
    asked: Asked,
    on_batch: Callable[[str, int, int], None],
) -> Evaluated:
    from llmft.evaluation.generation import generate

    model.requires_grad_(False).eval()
    told, train = bound.spec.evaluate, bound.spec.train
    names, functions = _metrics(bound, dataset, asked)
    encoder = Encoder(base.tokenizer, train.max_length or base.positions, base.chat_format)
    size = train.per_device_eval_batch_size

    notes = [note] if (note := rows.note()) else []

    def losses() -> tuple[Sequence[str], RowLosses]:
        encoded, report = encoder.encode(evaluation.as_answered(rows.rows), train)
        if lost := report.note():
            notes.append(f"to compute the loss, {lost}")
        of_rows = evaluation.row_losses(model, encoded, size, lambda *n: on_batch("loss", *n))
        return [row.origin for row in encoded], of_rows

    def answer(prompts: Sequence[Prompt]) -> list[str]:
        return generate(
            model,
            base.tokenizer,
            [encoder.prompt_ids(prompt) for prompt in prompts],
            max_new_tokens=asked.max_new_tokens or (told.max_new_tokens if told else 64),
            batch_size=size,
            on_batch=lambda *n: on_batch("answer", *n),
        )

    of_tokens = set(names) & set(LOSS_METRICS)
    found = evaluation.score_rows(
        rows,
        dataset,
        names,
        functions,
        losses=losses if of_tokens else None,
        answer=answer if asked.answers or set(names) - set(LOSS_METRICS) else None,
        samples=len(rows.rows),
    )
    scores = scores_of(found.values, ranges_of(dataset, functions, list(rows.sources)))
    ordered = {name: scores[name] for name in names if name in scores} | scores
    samples = found.samples
    stage = None if bound.name == NAME else bound.name
    return Evaluated(ordered, samples, len(rows.rows), stage, notes)
