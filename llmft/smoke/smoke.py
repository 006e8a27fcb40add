"""A smoke run: a recipe's own code path with a tiny random model and a few rows, and no network."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmft.api import Dataset
from llmft.api.errors import EnvironmentFault
from llmft.data.data_files import is_pattern
from llmft.engine.preflight import preflight
from llmft.engine.tiny_runs import make_upstream_runs
from llmft.modeling.base_model import BaseModel
from llmft.modeling.tiny_copy import TOKENS_IN_A_BYTE_ROW, make_tiny_copy
from llmft.recipes.job import BoundStage, Job
from llmft.recipes.locating import about, located
from llmft.recipes.other_models import models_of, other_models
from llmft.recipes.recipe import Recipe, Stage
from llmft.recipes.sources import data_blocks
from llmft.registry.return_checks import smoke_overrides_of
from llmft.system import fsio, machine, tf32
from llmft.system.launcher import launch

WARNING = "smoke run: a tiny random model; the scores mean nothing"
STEPS, ROWS, JUDGED, TOKENS, ROUNDS = 2, 16, 4, 8, 2
POSITIONS, MOST_POSITIONS = 1024, 4096
_NUMBER = re.compile(r"stages\[(\d+)\]\.adapter\.(\w+)")

Changes = Iterator[tuple[str, Any]]
"""Settings of the recipe by path, as `--set` takes them, and what they become."""


def smoke_recipe(job: Job, folder: Path) -> tuple[Job, BaseModel, list[str]]:
    """Return a job made small enough to run in seconds, its tiny model, and what to tell of it.

    folder: gets the tiny model, the example rows and the run.
    Each change is an override, as if by `--set`: the run folder lists them. Raises EnvironmentFault
    where there is no stand-in for the model or the data.
    """
    _stay_offline()
    recipe = job.written  # what is changed stands in the file, where a stage is once
    rows = max((stage.train.max_length or 0 for stage in recipe.stages), default=0)
    positions = min(max(POSITIONS, rows * TOKENS_IN_A_BYTE_ROW), MOST_POSITIONS)
    with located(job, ""), about("model.path"):
        own_tokenizer, note = make_tiny_copy(recipe.model, folder / "model", recipe.seed, positions)
        if any(True for _ in other_models(recipe)):  # of other numbers, so that there is a gradient
            make_tiny_copy(recipe.model, folder / "other", recipe.seed + 1, positions)
    notes = [note]
    changes = dict(_of_the_recipe(recipe, folder, own_tokenizer))
    for number, bound in enumerate(job.written_stages):
        stage = bound.spec
        if stage.peft_start is not None:
            changes[f"stages.{number}.start_from"] = None
            notes.append(f"{stage.name}: a new adapter stands in for 'peft:{stage.peft_start}'")
        longer = 1 if own_tokenizer else TOKENS_IN_A_BYTE_ROW
        changes |= {f"stages.{number}.{k}": v for k, v in _of_a_stage(stage, longer, positions)}
        changes |= {f"stages.{number}.{k}": v for k, v in _of_other_models(stage, folder)}
        for _, other in models_of(stage):
            notes.append(f"{stage.name}: a second tiny model stands in for '{other.path}'")
        for key, value in _of_the_work(bound):
            changes[f"stages.{number}.{key}"] = value
            if isinstance(value, dict):
                own = key.partition(".")[2]
                notes.append(f"{stage.name}: {value['method']} replaces its {own}")
        rows_here = folder / "rows" / str(number)
        with located(job, stage.name), about("data.path"):
            for key, value in _of_the_data(bound, rows_here):
                changes[f"stages.{number}.{key}"] = value
        if rows_here.is_dir():
            notes.append(f"{stage.name}: example rows replace the data")
    left_out: list[str] = []

    tiny: list[BaseModel] = []  # one for all: its config is read once

    def fitted(whole: Job, changes: Mapping[str, Any]) -> Job:
        small = _reloaded(whole, changes)
        if not tiny:
            tiny.append(BaseModel(small.recipe.model))
        too_big = dict(_numbers_of_the_real_model(small, tiny[0]))
        left_out.extend(key.rpartition(".")[2] for key in too_big)
        return _reloaded(whole, {**changes, **too_big}) if too_big else small

    def as_small(other: Job) -> Job:
        return fitted(other, dict(_of_the_recipe(other.written, folder, own_tokenizer)))

    notes += make_upstream_runs(job, folder / "runs", ROWS, as_small)
    small = fitted(job, changes)
    if left_out:
        notes.append(f"left out, as they describe the real model: {', '.join(left_out)}")
    return small, tiny[0], notes


def _reloaded(job: Job, changes: Mapping[str, Any]) -> Job:
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    return job.load(job.source.path, [*job.source.overrides, *overrides])


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
    if recipe.model.attn_implementation.startswith("flash") and not _has_gpu():
        yield "model.attn_implementation", "auto"
    if recipe.model.fused == "liger" and not _has_gpu():
        yield "model.fused", "none"
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
    size, accumulation = min(train.per_device_train_batch_size, 2), min(train.accumulation(), 2)
    small = {
        "max_steps": min(train.max_steps or STEPS, STEPS),
        "per_device_train_batch_size": size,
        "per_device_eval_batch_size": min(train.per_device_eval_batch_size, JUDGED),
        "warmup_steps": min(train.warmup_steps, 1),
        "logging_steps": 1,
        "max_dropped": 1.0,
    }
    if train.train_batch_size:
        small["train_batch_size"] = size * accumulation * launch().count
    elif train.gradient_accumulation_steps:
        small["gradient_accumulation_steps"] = accumulation
    if train.max_length:
        small["max_length"] = min(train.max_length * longer, positions)
    if train.save_strategy == "steps":
        small["save_steps"] = 1
    for name, value in small.items():
        if value != getattr(train, name):
            yield f"train.{name}", value
    if train.tf32 and tf32.misfit():
        yield "train.tf32", None
    if train.activation_offloading and not machine.on_gpu():
        yield "train.activation_offloading", False
    if asked:
        yield "evaluate.limit", min(asked.limit or JUDGED, JUDGED)
        if asked.holdout is not None and asked.holdout >= 1:
            yield "evaluate.holdout", 1  # the rows that stand in are few
        yield "evaluate.max_new_tokens", min(asked.max_new_tokens, TOKENS)
        if asked.eval_strategy == "steps":
            yield "evaluate.eval_steps", 1
        if asked.generate_every is not None:
            yield "evaluate.generate_every", 1


def _of_other_models(stage: Stage, folder: Path) -> Changes:
    """Yield a second tiny model in the place of each that the method reads beside its own."""
    for key, asked in models_of(stage):
        name = ".".join(map(str, key))
        yield f"{name}.path", str(folder / "other")
        if asked.revision:
            yield f"{name}.revision", None


def _of_the_work(bound: BoundStage) -> Changes:
    """Yield what the stage's method itself asks to be replaced."""
    stage = bound.spec
    for name, value in smoke_overrides_of(bound.work).items():
        if value != getattr(stage.work, name):
            yield f"{stage.work_kind}.{name}", value
    if stage.alignment is None:
        return
    if not bound.optimizer.supports_cpu and not _has_gpu():
        yield "train.optim", "adamw_torch"
    for number, callback in enumerate(bound.callbacks):
        for name, value in smoke_overrides_of(callback).items():
            if value != getattr(callback.config, name):
                yield f"plugins.{number}.{name}", value
    schedule = bound.schedule
    own = isinstance(stage.train.lr_scheduler_type, str)
    for name, value in smoke_overrides_of(schedule).items():
        if value != getattr(schedule.config, name):
            yield f"train.{'lr_scheduler_kwargs' if own else 'lr_scheduler_type'}.{name}", value


def _of_the_data(bound: BoundStage, folder: Path) -> Changes:
    if bound.spec.data is None or bound.dataset is None:
        return
    sources = bound.dataset.sources or (bound.dataset,)
    blocks = data_blocks(bound.spec.data)
    for place, ((key, _), dataset) in enumerate(zip(blocks, sources, strict=True)):
        own = folder / str(place) if len(blocks) > 1 else folder
        yield from _of_a_source(bound.spec, dataset, ".".join(map(str, key)), own)


def _of_a_source(stage: Stage, dataset: Dataset[Any], key: str, folder: Path) -> Changes:
    """Yield the changes of a data block, or of one of its sources, at its key."""
    config: Any = dataset.config
    yield f"{key}.limit", min(config.limit or ROWS, ROWS)
    if config.num_samples:
        yield f"{key}.num_samples", min(config.num_samples, ROWS)
    if _is_here(config):
        return
    examples = [dict(record) for record in dataset.example_records()]
    source = config.path or ", ".join(config.data_files.values())
    if not examples or "path" not in type(config).model_fields:
        raise EnvironmentFault(
            "E201",
            f"'{source}' is not here, and '{config.method}' has no example rows",
            fix="use a local file for the smoke run: --set"
            f" stages.{stage.name}.{key}.path=rows.jsonl",
        )
    whole = (examples * ROWS)[:ROWS]
    with fsio.disk_errors(folder):
        folder.mkdir(parents=True)
    fsio.write_jsonl(folder / "train.jsonl", whole)
    fsio.write_jsonl(folder / f"{dataset.held_out_split}.jsonl", whole[:JUDGED])
    yield f"{key}.path", str(folder)
    yield f"{key}.split", "train"
    if getattr(config, "data_files", None):
        yield f"{key}.data_files", None
    # They name columns of the rows that are not here.
    if config.drop.where:
        yield f"{key}.drop.where", []
    if config.replace:
        yield f"{key}.replace", []
    if stage.evaluate and stage.evaluate.split:
        yield "evaluate.split", dataset.held_out_split


def _is_here(config: Any) -> bool:
    """Return whether a data set's rows need no network, as far as its settings tell."""
    if files := getattr(config, "data_files", None):
        return all(is_pattern(file) or Path(file).expanduser().is_file() for file in files.values())
    path = getattr(config, "path", None)
    return (
        path is None
        or path.startswith("embedded:")
        or is_pattern(path)
        or Path(path).expanduser().exists()
    )


def _numbers_of_the_real_model(small: Job, tiny: BaseModel) -> Changes:
    """Yield adapter settings that are sizes of the real model, and so cannot fit the tiny one.

    A name that fits no layer is another matter: it would not fit the real model either.
    """
    for fault in preflight(small, tiny):
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
