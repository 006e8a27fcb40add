"""Rewards of texts, by the reward model that a stage of a finished run has made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmft import artifacts, models
from llmft.api import CompletionRow, Dataset, Encoded, TextRow
from llmft.errors import DataError
from llmft.evaluating.inference import load_run
from llmft.machine import device
from llmft.preparing.encoding import Encoder
from llmft.preparing.pairs import cut_at_start
from llmft.preparing.tables import read_file
from llmft.registry import Registry
from llmft.saving.earlier import load_options, load_stage, stage_adapter, stage_dataset
from llmft.settings import TrainSettings

BATCH = 16
REWARD_MODEL = "reward_model"


def score_file(
    run: Path, file: Path, registry: Registry, *, stage: str | None = None
) -> list[dict[str, Any]]:
    """Return each record of a file with the reward of its text as `score`.

    A record holds `text`, or `prompt` and `completion`, or `prompt`, `chosen` and `rejected`, which
    get `chosen_score` and `rejected_score`. A prompt is text, or messages. A row longer than the
    stage's `max_length` loses its start, as in training.
    stage: default: the last finished one that made a reward model.
    Raises CheckpointError where there is none, DataError at a record with nothing to score.
    """
    import torch

    from llmft.training.heads import rewards

    recipe = load_run(run, registry)
    folder = artifacts.stage_that_made(
        REWARD_MODEL, run, stage, fix="run a recipe with the alignment reward"
    )
    chosen = recipe.stage(folder.name)
    adapter = stage_adapter(recipe, chosen, registry)
    dataset = stage_dataset(recipe, chosen, registry, run)
    config = models.load_config(recipe.model)
    limit = chosen.train.max_length or models.max_positions(config)
    encoder = Encoder(models.load_tokenizer(recipe.model), None, models.chat_format(recipe.model))
    records = list(read_file(file))
    asked = [
        (number, key, cut_at_start(row, limit, encoder.tokenizer.bos_token_id))
        for number, (origin, record) in enumerate(records)
        for key, row in _rows(record, origin, dataset, encoder)
    ]
    options = load_options(recipe, adapter)
    base = models.load_base(recipe.model, options, varlen=adapter.supports_packing)
    model = load_stage(folder, registry, base if options else base.to(device()))
    scored: list[dict[str, Any]] = [dict(record) for _, record in records]
    with torch.no_grad():
        for start in range(0, len(asked), BATCH):
            some = asked[start : start + BATCH]
            values = rewards(model, [row for _, _, row in some]).tolist()
            for (number, key, _), value in zip(some, values, strict=True):
                scored[number][key] = value
    return scored


def _rows(
    record: Mapping[str, Any], origin: str, dataset: Dataset[Any], encoder: Encoder
) -> Iterator[tuple[str, Encoded]]:
    """Yield the texts of a record as token rows, each with the name of its score."""
    keys = {"completion": "score", "chosen": "chosen_score", "rejected": "rejected_score"}
    found = {column: record[column] for column in keys if isinstance(record.get(column), str)}
    prompt = record.get("prompt")
    if isinstance(prompt, str):
        prompt = dataset.ask(prompt)
    elif isinstance(prompt, list):
        prompt = tuple(prompt)
    if prompt and found:
        for column, text in found.items():
            yield keys[column], encoder.completion(CompletionRow(prompt, text, (), origin))
    elif isinstance(record.get("text"), str) and record["text"].strip():
        (row,), _ = encoder.encode([TextRow(record["text"], origin)], TrainSettings())
        yield "score", row
    else:
        raise DataError(
            "E101",
            f"{origin}: nothing to score (there is: {', '.join(map(str, record))})",
            fix="give text, or prompt and completion, or prompt, chosen and rejected",
        )
