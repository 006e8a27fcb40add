"""Rewards or classes of texts, by the model that a stage of a finished run has made for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmft.api import ClassificationRow, CompletionRow, Dataset, Encoded, Row, TextRow
from llmft.api.errors import DataError
from llmft.api.train_settings import TrainSettings
from llmft.data.classification_encoding import classified_ids
from llmft.data.encoding import Encoder
from llmft.data.encoding_report import EncodingReport
from llmft.data.pair_encoding import cut_at_start
from llmft.data.tables import read_file
from llmft.inference.answering import model_of_run, stage_with_checkpoint
from llmft.modeling.base_model import BaseModel
from llmft.recipes.job import Job
from llmft.runs import artifacts
from llmft.runs.upstream import dataset_in
from llmft.system import fsio

BATCH = 16
REWARD_MODEL = "reward_model"
CLASSIFIER = "classifier"
CLASSES = "classes.json"
"""What a stage that makes a classifier writes of its classes, in its folder."""


def score_file(
    job: Job, run: Path, file: Path, *, stage: str | None = None, step: int | None = None
) -> list[dict[str, Any]]:
    """Return each record of a file with the reward of its text as `score`, or with its class.

    For a reward model a record holds `text`, or `prompt` and `completion`, or `prompt`, `chosen`
    and `rejected`, which get `chosen_score` and `rejected_score`. A prompt is text, or messages. A
    row longer than the stage's `max_length` loses its start, as in training. For a classifier it is
    as the stage's data set reads it, without the label; it gets `predicted` (a class, a list of
    them, or a number) and, but for a number, `scores`: the probability of each class.
    stage: default: the last finished one that made either. step: use its checkpoint after
    so many steps, for which it need not be finished.
    Raises CheckpointError where there is none, DataError at a record with nothing to score.
    """
    import torch

    kind = _kind(job, run, stage)
    if step is None:
        folder = artifacts.stage_that_made(
            kind, run, stage, fix="run a recipe with the alignment reward or classification"
        )
    else:
        folder = stage_with_checkpoint(job, run, kind, stage, step)
    bound, base = job.stage(folder.name), BaseModel(job.recipe.model)
    dataset = dataset_in(bound, run)
    limit = bound.spec.train.max_length or base.positions
    encoder = Encoder(base.tokenizer, None, base.chat_format)
    records = list(read_file(file))
    asked: list[tuple[int, str, Encoded]]
    if kind == CLASSIFIER:
        encoder.max_length = limit
        asked = [
            (number, "", _classified(record, origin, dataset, encoder))
            for number, (origin, record) in enumerate(records)
        ]
    else:
        asked = [
            (number, key, cut_at_start(row, limit, encoder.tokenizer.bos_token_id))
            for number, (origin, record) in enumerate(records)
            for key, row in _rows(record, origin, dataset, encoder)
        ]
    adapter = bound.model_adapter
    varlen = adapter is None or adapter.supports_packing
    model = model_of_run(job, bound, base, folder, varlen=varlen, whole=True, step=step)
    scored: list[dict[str, Any]] = [dict(record) for _, record in records]
    told = _told_of_classes(folder) if kind == CLASSIFIER else None
    with torch.no_grad():
        for start in range(0, len(asked), BATCH):
            some = asked[start : start + BATCH]
            found = _found(model, [row for _, _, row in some], told)
            for (number, key, _), values in zip(some, found, strict=True):
                scored[number] |= {name or key: value for name, value in values.items()}
    return scored


def _kind(job: Job, run: Path, stage: str | None) -> str:
    """Return what the stage that scores has made: the one named, or the last that is finished."""
    kinds = (REWARD_MODEL, CLASSIFIER)
    every = [one for one in job.stages if one.work.produces in kinds and stage in (None, one.name)]
    done = [one for one in every if (run / "stages" / one.name / artifacts.RESULT).is_file()]
    return (done or every)[-1].work.produces if every else REWARD_MODEL


def _found(
    model: Any, rows: list[Encoded], told: tuple[str, list[str]] | None
) -> list[dict[str, Any]]:
    """Return the columns that each row gets; a reward has no name. told: of a classifier."""
    from llmft.modeling.heads import class_logits, rewards

    if told is None:
        return [{"": value} for value in rewards(model, rows).tolist()]
    kind, names = told
    logits_BC = class_logits(model, rows)
    if kind == "regression":
        return [{"predicted": value} for value in logits_BC[:, 0].tolist()]
    several = kind == "multi_label_classification"
    shares = (logits_BC.sigmoid() if several else logits_BC.softmax(1)).tolist()
    best = logits_BC.argmax(1).tolist()
    return [
        {
            "predicted": [name for name, one in zip(names, share, strict=True) if one > 0.5]
            if several
            else names[place],
            "scores": dict(zip(names, share, strict=True)),
        }
        for share, place in zip(shares, best, strict=True)
    ]


def _told_of_classes(folder: Path) -> tuple[str, list[str]]:
    """Return the problem type and the names of the classes of a stage's classifier."""
    told = fsio.read_json(folder / CLASSES, artifacts.PUT_BACK)
    return str(told["problem_type"]), [str(one["class"]) for one in told["classes"]]


def _classified(
    record: Mapping[str, Any], origin: str, dataset: Dataset[Any] | None, encoder: Encoder
) -> Encoded:
    """Return what is to be classified of a record, as the stage's data set reads it."""
    report = EncodingReport()
    row = _unlabelled(record, origin, dataset)
    if not isinstance(row, ClassificationRow):
        raise DataError("E105", f"{origin}: a {type(row).__name__} has no class")
    ids = classified_ids(encoder, row, "truncate", report)
    if not ids:
        raise DataError("E101", f"{origin}: the text has no token")
    return Encoded(tuple(ids), (-100,) * len(ids), origin)


def _unlabelled(record: Mapping[str, Any], origin: str, dataset: Dataset[Any] | None) -> Row:
    """Return a record as a row without a label; of several sources the first that reads it."""
    fault: DataError | None = None
    for one in (dataset.sources or (dataset,)) if dataset is not None else ():
        try:
            return one.unlabelled(record, origin)
        except DataError as error:
            fault = fault or error
    raise fault or DataError("E101", f"{origin}: the stage has no data set that reads records")


def _rows(
    record: Mapping[str, Any], origin: str, dataset: Dataset[Any] | None, encoder: Encoder
) -> Iterator[tuple[str, Encoded]]:
    """Yield the texts of a record as token rows, each with the name of its score."""
    keys = {"completion": "score", "chosen": "chosen_score", "rejected": "rejected_score"}
    found = {column: record[column] for column in keys if isinstance(record.get(column), str)}
    prompt = record.get("prompt")
    if isinstance(prompt, str):
        prompt = dataset.ask(prompt) if dataset else prompt
    elif isinstance(prompt, list):
        prompt = tuple(prompt)
    if prompt and found:
        for column, text in found.items():
            yield keys[column], encoder.completion(CompletionRow(prompt, text, (), origin))
    elif isinstance(record.get("text"), str) and record["text"].strip():
        (row,), _ = encoder.encode([TextRow(record["text"], origin, "text")], TrainSettings())
        yield "score", row
    else:
        raise DataError(
            "E101",
            f"{origin}: nothing to score (there is: {', '.join(map(str, record))})",
            fix="give text, or prompt and completion, or prompt, chosen and rejected",
        )
