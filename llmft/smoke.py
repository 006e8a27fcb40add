"""A smoke run: a recipe's own code path with a tiny random model and a few rows, and no network."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmft import fsio
from llmft.api import Dataset
from llmft.deep import check_against_model
from llmft.discovery.given import small_of
from llmft.errors import EnvironmentFault
from llmft.reading.checks import OF_BITSANDBYTES
from llmft.reading.recipe import Loaded, load_recipe
from llmft.recipe import Recipe, Stage
from llmft.registry import Registry
from llmft.saving.earlier import stage_work
from llmft.stand_in import TOKENS_IN_A_BYTE_ROW, make_stand_in
from llmft.stand_in_run import make_earlier_runs

WARNING = "smoke run: a tiny random model; the scores mean nothing"
STEPS, ROWS, JUDGED, TOKENS, ROUNDS = 2, 16, 4, 8, 2
POSITIONS, MOST_POSITIONS = 1024, 4096
_NUMBER = re.compile(r"stages\[(\d+)\]\.adapter\.(\w+)")

Changes = Iterator[tuple[str, Any]]
"""Settings of the recipe by path, as `--set` takes them, and what they become."""


def smoke_recipe(loaded: Loaded, folder: Path, registry: Registry) -> tuple[Loaded, list[str]]:
    """Return a recipe made small enough to run in seconds, and what a person should know about it.

    folder: gets the tiny model, the example rows and the run.
    Each change is an override, as if by `--set`: the run folder lists them. Raises EnvironmentFault
    where there is no stand-in for the model or the data.
    """
    _stay_offline()
    recipe = loaded.written  # what is changed stands in the file, where a stage is once
    rows = max((stage.train.max_length or 0 for stage in recipe.stages), default=0)
    positions = min(max(POSITIONS, rows * TOKENS_IN_A_BYTE_ROW), MOST_POSITIONS)
    own_tokenizer, note = make_stand_in(recipe.model, folder / "model", recipe.seed, positions)
    notes = [note]
    changes = dict(_of_the_recipe(recipe, folder, own_tokenizer))
    for number, stage in enumerate(recipe.stages):
        longer = 1 if own_tokenizer else TOKENS_IN_A_BYTE_ROW
        changes |= {f"stages.{number}.{k}": v for k, v in _of_a_stage(stage, longer, positions)}
        for key, value in _of_the_work(stage, registry):
            changes[f"stages.{number}.{key}"] = value
            if isinstance(value, dict):
                own = key.partition(".")[2]
                notes.append(f"{stage.name}: {value['method']} stands in for its {own}")
        rows_here = folder / "rows" / str(number)
        for key, value in _of_the_data(stage, rows_here, registry):
            changes[f"stages.{number}.{key}"] = value
        if rows_here.is_dir():
            notes.append(f"{stage.name}: example rows stand in for the data")
    left_out: list[str] = []

    def fitted(whole: Loaded, changes: Mapping[str, Any]) -> Loaded:
        small, names = _fitted(whole, changes, registry)
        left_out.extend(names)
        return small

    def as_small(earlier: Loaded) -> Loaded:
        return fitted(earlier, dict(_of_the_recipe(earlier.written, folder, own_tokenizer)))

    notes += make_earlier_runs(loaded, folder / "runs", ROWS, registry, as_small)
    small = fitted(loaded, changes)
    if left_out:
        notes.append(f"left out, as they describe the real model: {', '.join(left_out)}")
    return small, notes


def _fitted(
    loaded: Loaded, changes: Mapping[str, Any], registry: Registry
) -> tuple[Loaded, list[str]]:
    """Return a recipe changed to fit the tiny model, and which settings were left out for that."""
    small = _reloaded(loaded, changes, registry)
    too_big = dict(_numbers_of_the_real_model(small, registry))
    if too_big:
        small = _reloaded(loaded, {**changes, **too_big}, registry)
    return small, [key.rpartition(".")[2] for key in too_big]


def _reloaded(loaded: Loaded, changes: Mapping[str, Any], registry: Registry) -> Loaded:
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    small = load_recipe(loaded.path, registry, [*loaded.overrides, *overrides])
    return replace(small, smoke=True)


def _of_the_recipe(recipe: Recipe, folder: Path, own_tokenizer: bool) -> Changes:
    yield "output_dir", str(folder / "runs")
    yield "model.path", str(folder / "model")
    if recipe.model.revision:
        yield "model.revision", None
    if recipe.model.tokenizer:
        yield "model.tokenizer", None
    if not own_tokenizer:  # its tokens are bytes, so it has none of those that they name
        if recipe.model.chat_template:
            yield "model.chat_template", None
        if recipe.model.stop:
            yield "model.stop", []
    if recipe.model.attn_implementation == "flash_attention_2" and not _has_gpu():
        yield "model.attn_implementation", "auto"
    # Nobody but the terminal and the run folder is told of scores that mean nothing.
    field = Recipe.model_fields["trackers"]
    told = [t.model_dump(mode="json") for t in field.get_default(call_default_factory=True)]
    if {tracker.method for tracker in recipe.trackers} - {tracker["method"] for tracker in told}:
        yield "trackers", told
    if recipe.push_to_hub:
        yield "push_to_hub", None
    if recipe.repeat:
        yield "repeat.rounds", min(recipe.repeat.rounds, ROUNDS)


def _of_a_stage(stage: Stage, longer: int, positions: int) -> Changes:
    train, asked = stage.train, stage.evaluate
    if stage.task:  # it trains nothing
        yield "train.per_device_eval_batch_size", min(train.per_device_eval_batch_size, JUDGED)
        return
    small = {
        "max_steps": min(train.max_steps or STEPS, STEPS),
        "per_device_train_batch_size": min(train.per_device_train_batch_size, 2),
        "gradient_accumulation_steps": min(train.gradient_accumulation_steps, 2),
        "per_device_eval_batch_size": min(train.per_device_eval_batch_size, JUDGED),
        "warmup_steps": min(train.warmup_steps, 1),
        "logging_steps": 1,
        "max_dropped": 1.0,
    }
    if train.max_length:
        small["max_length"] = min(train.max_length * longer, positions)
    if train.save_strategy == "steps":
        small["save_steps"] = 1
    for name, value in small.items():
        if value != getattr(train, name):
            yield f"train.{name}", value
    if train.optim in OF_BITSANDBYTES and not _has_gpu():
        yield "train.optim", "adamw_torch"
    if asked:
        yield "evaluate.limit", min(asked.limit or JUDGED, JUDGED)
        yield "evaluate.max_new_tokens", min(asked.max_new_tokens, TOKENS)


def _of_the_work(stage: Stage, registry: Registry) -> Changes:
    """Yield what the stage's method itself asks to be replaced."""
    for name, value in small_of(stage_work(stage, registry)).items():
        if value != getattr(stage.work, name):
            yield f"{stage.work_kind}.{name}", value


def _of_the_data(stage: Stage, folder: Path, registry: Registry) -> Changes:
    config: Any = stage.data
    if config is None:
        return
    yield "data.limit", min(config.limit or ROWS, ROWS)
    if _is_here(config):
        return
    dataset: Dataset[Any] = registry.method("dataset", config.method)(config)
    examples = [dict(record) for record in dataset.example_records()]
    source = config.path or ", ".join(config.data_files.values())
    if not examples or "path" not in type(config).model_fields:
        raise EnvironmentFault(
            "E201",
            f"stages.{stage.name}.data: '{source}' is not here, and '{config.method}' brings no"
            " example rows",
            fix="give a local file for the smoke run: --set"
            f" stages.{stage.name}.data.path=rows.jsonl",
        )
    whole = (examples * ROWS)[:ROWS]
    with fsio.disk_errors(folder):
        folder.mkdir(parents=True)
    fsio.write_jsonl(folder / "train.jsonl", whole)
    fsio.write_jsonl(folder / f"{dataset.held_out_split}.jsonl", whole[:JUDGED])
    yield "data.path", str(folder)
    yield "data.split", "train"
    if getattr(config, "data_files", None):
        yield "data.data_files", None
    if stage.evaluate and stage.evaluate.split:
        yield "evaluate.split", dataset.held_out_split


def _is_here(config: Any) -> bool:
    """Return whether a data set's rows need no network, as far as its settings tell."""
    if files := getattr(config, "data_files", None):
        return all(Path(file).expanduser().is_file() for file in files.values())
    path = getattr(config, "path", None)
    return path is None or path.startswith("embedded:") or Path(path).expanduser().exists()


def _numbers_of_the_real_model(small: Loaded, registry: Registry) -> Changes:
    """Yield adapter settings that are sizes of the real model, and so cannot fit the tiny one.

    A name that fits no layer is another matter: it would not fit the real model either.
    """
    for fault in check_against_model(small, registry):
        match = _NUMBER.match(fault.path)
        if not match:
            continue
        number, key = int(match[1]), match[2]
        adapter = small.written.stages[number].adapter
        value = getattr(adapter, key, None)
        numbers = value if isinstance(value, list) else [value]
        if adapter and all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
            default = type(adapter).model_fields[key].get_default(call_default_factory=True)
            yield f"stages.{number}.adapter.{key}", default


def _stay_offline() -> None:
    """Keep upstream from looking for a network; it reads these when it is first imported."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
