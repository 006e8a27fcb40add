"""Rewards of texts, by the reward model that a stage of a finished run has made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmft.api import CompletionRow, Dataset, Encoded, TextRow
from llmft.api.errors import DataError
from llmft.api.train_settings import TrainSettings
from llmft.data.encoding import Encoder
from llmft.data.pair_encoding import cut_at_start
from llmft.data.tables import read_file
from llmft.inference.answering import model_of_run, stage_with_checkpoint
from llmft.modeling.base_model import BaseModel
from llmft.recipes.job import Job
from llmft.runs import artifacts
from llmft.runs.upstream import dataset_in

BATCH = 16
REWARD_MODEL = "reward_model"


def score_file(
    job: Job, run: Path, file: Path, *, stage: str | None = None, step: int | None = None
) -> list[dict[str, Any]]:
    """Return each record of a file with the reward of its text as `score`.

    A record holds `text`, or `prompt` and `completion`, or `prompt`, `chosen` and `rejected`, which
    get `chosen_score` and `rejected_score`. A prompt is text, or messages. A row longer than the
    stage's `max_length` loses its start, as in training.
    stage: default: the last finished one that made a reward model. step: use its checkpoint after
    so many steps, for which it need not be finished.
    Raises CheckpointError where there is none, DataError at a record with nothing to score.
    """
    import torch

    from llmft.modeling.heads import rewards

    if step is None:
        folder = artifacts.stage_that_made(
            REWARD_MODEL, run, stage, fix="run a recipe with the alignment reward"
        )
    else:
        folder = stage_with_checkpoint(job, run, REWARD_MODEL, stage, step)
    bound, base = job.stage(folder.name), BaseModel(job.recipe.model)
    dataset = dataset_in(bound, run)
    limit = bound.spec.train.max_length or base.positions
    encoder = Encoder(base.tokenizer, None, base.chat_format)
    records = list(read_file(file))
    asked = [
        (number, key, cut_at_start(row, limit, encoder.tokenizer.bos_token_id))
        for number, (origin, record) in enumerate(records)
        for key, row in _rows(record, origin, dataset, encoder)
    ]
    adapter = bound.model_adapter
    varlen = adapter is None or adapter.supports_packing
    model = model_of_run(job, bound, base, folder, varlen=varlen, whole=True, step=step)
    scored: list[dict[str, Any]] = [dict(record) for _, record in records]
    with torch.no_grad():
        for start in range(0, len(asked), BATCH):
            some = asked[start : start + BATCH]
            values = rewards(model, [row for _, _, row in some]).tolist()
            for (number, key, _), value in zip(some, values, strict=True):
                scored[number][key] = value
    return scored


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
