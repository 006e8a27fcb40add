"""What a stage does, and on which rows: an alignment or a task, and its data."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from llmft.api.evaluate_settings import ScoredTaskConfig
from llmft.api.splits import split_parts
from llmft.recipes.asking import asked, clash
from llmft.recipes.methods import Blocks
from llmft.recipes.metrics import check_metrics, check_scored_kind
from llmft.recipes.sources import data_blocks, sources_of
from llmft.recipes.tree import KeyPath, visible
from llmft.registry.return_checks import refusals_of

if TYPE_CHECKING:
    from llmft.api import DatasetConfig
    from llmft.recipes.recipe import Stage

_OF_TRAINING = ("adapter", "evaluate", "plugins")
_OF_TASKS = ("per_device_eval_batch_size", "max_length")  # what a task reads of `train`


def check_work(stage: Stage, base: KeyPath, blocks: Blocks) -> None:
    """Note a fault unless a stage has an alignment or a task, and the blocks that go with it."""
    tree = blocks.tree
    alignment, task, data = (*base, "alignment"), (*base, "task"), (*base, "data")
    given = [path for path in (alignment, task) if path in blocks.kinds]
    if not given:
        what = "'alignment' is missing"
        tree.report("E021", alignment, what, "add alignment: what is optimised; or a task")
        return
    if len(given) == 2:
        what = "a stage has an alignment or a task, not both"
        clash(blocks, "E040", given, what, "split it into two stages")
        return
    if task in given:
        if isinstance(stage.task, ScoredTaskConfig) and stage.task.base and not stage.start_from:
            what = "this task scores the base already, as it starts from no stage"
            clash(blocks, "E040", [(*task, "base")], what, "name a stage in start_from, or drop it")
        for path in _useless(stage):
            what = f"a task trains nothing, so '{path[-1]}' has no effect"
            paths: list[KeyPath] = [(*base, *path), (*task, "method")]
            clash(blocks, "E040", paths, what, f"drop {path[-1]}")
    reads = (cls := blocks.classes.get(given[0])) is None or bool(cls.rows)
    if stage.data is None and reads and not tree.is_broken(data):
        tree.report("E021", data, "'data' is missing", "add data: the rows")
    elif stage.data is not None and not reads:
        what = f"the task '{visible(stage.work.method)[:80]}' reads no rows"
        clash(blocks, "E040", [data, (*task, "method")], what, "drop data")


def _useless(stage: Stage) -> list[KeyPath]:
    """Return the settings of a task's stage that are about training, and say something."""
    found: list[KeyPath] = [(key,) for key in _OF_TRAINING if getattr(stage, key)]
    for name, field in type(stage.train).model_fields.items():
        said = getattr(stage.train, name) != field.get_default(call_default_factory=True)
        if said and name not in _OF_TASKS:
            found.append(("train", name))
    return found


def check_rows(base: KeyPath, stage: Stage, blocks: Blocks) -> None:
    """The alignment or task must be able to read the rows, and the metrics must be known."""
    work = blocks.classes.get((*base, stage.work_kind))
    dataset = blocks.classes.get((*base, "data"))
    method: KeyPath = (*base, stage.work_kind, "method")
    name = visible(getattr(stage.work, "method", ""))[:80]  # none, where a block stands in
    trains = stage.alignment is not None
    paths: list[KeyPath]
    if work is not None and trains and stage.train.packing and not work.supports_packing:
        what = f"the '{name}' alignment cannot work with packing"
        paths = [(*base, "train", "packing"), method]
        clash(blocks, "E041", paths, what, "write packing: false")
    budget = trains and stage.train.per_device_train_tokens is not None
    if work is not None and budget and not _takes_budget(work, stage, method, blocks):
        under = ", with its settings," if work.supports_token_budget else ""
        what = f"'{name}'{under} needs as many rows in a forward pass as the recipe says"
        paths = [(*base, "train", "per_device_train_tokens"), method]
        fix = "drop it, and write per_device_train_batch_size"
        clash(blocks, "E041", paths, what, fix)
    if work is not None and trains and stage.train.shard_base and not work.supports_shard_base:
        what = f"'{name}' samples answers in each process for itself, and a divided base"
        what += " is computed by all of them together"
        paths = [(*base, "train", "shard_base"), method]
        clash(blocks, "E041", paths, what, "drop shard_base")
    grouped = trains and stage.train.train_sampling_strategy == "group_by_length"
    if work is not None and grouped and not work.supports_length_groups:
        what = f"'{name}' samples its rows during training, so their lengths are not known before"
        paths = [(*base, "train", "train_sampling_strategy"), method]
        clash(blocks, "E041", paths, what, "write random or sequential")
    short = trains and stage.train.max_prompt_length is not None
    if work is not None and short and not {"preference", "unpaired"} & set(work.rows):
        what = f"max_prompt_length is about pairs and labelled answers, and '{name}' reads none"
        paths = [(*base, "train", "max_prompt_length"), method]
        clash(blocks, "E041", paths, what, "drop it, or write max_length")
    if dataset is None or stage.data is None:
        return
    where: KeyPath = (*base, "data")
    _check_data(where, stage.data, blocks)
    several = data_blocks(stage.data, where)
    for path, config in [(where, stage.data), *sources_of(stage.data, where)]:
        if config.streaming:
            _check_streaming(base, path, stage, config, work, name, blocks)
    classes = [blocks.classes[path] for path, _ in several if path in blocks.classes]
    for path, config in several:
        if path in blocks.classes:
            kind = _check_kind(path, config, work, stage, method, blocks)
            check_scored_kind(base, stage, path, kind, blocks)
            if trains and stage.train.on_long_row == "split" and kind not in (None, "text"):
                setting = "on_long_row"
                if stage.train.packing_strategy == "wrapped":
                    setting = "packing_strategy"
                what = f"{setting}: {getattr(stage.train, setting)} cuts plain text, and"
                what += f" '{visible(config.method)[:80]}' gives {kind} rows with these settings"
                places: list[KeyPath] = [(*base, "train", setting), (*path, "method")]
                fix = f"drop {setting}, or name a column of plain text: columns.text"
                clash(blocks, "E041", places, what, fix)
    classes = classes or [dataset]
    metrics = [name for name in classes[0].metrics if all(name in cls.metrics for cls in classes)]
    check_metrics(base, stage, metrics, work, blocks)


def _takes_budget(work: Any, stage: Stage, method: KeyPath, blocks: Blocks) -> bool:
    """Return whether an alignment, by its settings, may be dealt passes of so many tokens."""
    found = asked(blocks, method[:-1], lambda: work(stage.alignment).supports_token_budget)
    return found is not False


def _check_kind(
    where: KeyPath, data: DatasetConfig, work: Any, stage: Stage, method: KeyPath, blocks: Blocks
) -> Any:
    """What a data set, or one of several, gives must be what the alignment or task reads.

    Returns the kind of its rows, or None where that is not known or reported already.
    """
    dataset = blocks.classes[where]
    kind = asked(blocks, where, lambda: dataset(data).row_kind())
    if work is None or kind is None:
        return kind
    read = work.rows
    if stage.alignment is not None:
        read = asked(blocks, method[:-1], lambda: work(stage.alignment).row_kinds()) or read
    if kind in read:
        return kind
    name = visible(stage.work.method)[:80]
    under = "" if set(read) == set(work.rows) else ", with its settings,"
    what = (
        f"'{visible(data.method)[:80]}' gives {kind} rows with these settings, and"
        f" '{name}'{under} reads {' or '.join(read)} rows"
    )
    can = [other for other in dataset.rows if other in read]
    fix = f"set it up to give {can[0]} rows" if can else f"choose another dataset or {method[-2]}"
    clash(blocks, "E042", [(*where, "method"), method], what, fix)
    return None


def _check_streaming(
    base: KeyPath,
    where: KeyPath,
    stage: Stage,
    data: DatasetConfig,
    work: Any,
    name: str,
    blocks: Blocks,
) -> None:
    """What needs all rows, or their number, cannot be asked of streamed ones."""
    key, train, asked = (*where, "streaming"), stage.train, stage.evaluate

    def refuse(other: KeyPath, what: str, fix: str, code: str = "E040") -> None:
        clash(blocks, code, [key, (*base, *other)], what, fix)

    if sources_of(data, where) or where != (*base, "data"):
        what = "what is put together of several sources cannot be streamed"
        refuse(("data", "method"), what, "drop streaming")
    if work is not None and not getattr(work, "supports_streaming", False):
        what = f"'{name}' cannot work with streamed rows"
        refuse((stage.work_kind, "method"), what, "drop streaming", "E041")
    if train.max_steps is None:
        what = "streamed rows have no end that is known, and max_steps is not set"
        refuse(("train",), what, "set train.max_steps")
    if any(part.needs_count for part in split_parts(data.split)):
        what = f"the split '{data.split}' counts all rows, and streamed rows are not counted"
        refuse(("data", "split"), what, "write a split such as train[100:]")
    if train.train_sampling_strategy == "group_by_length":
        what = "rows are grouped by the lengths of all, and streamed rows are never all there"
        fix = "write random or sequential"
        refuse(("train", "train_sampling_strategy"), what, fix)
    for block, setting in ((train, "save_strategy"), (asked, "eval_strategy")):
        if getattr(block, setting, "") == "epoch":
            part = "train" if block is train else "evaluate"
            what = f"{setting}: epoch needs the number of rows, and streamed rows are not counted"
            refuse((part, setting), what, f"write {setting}: steps")
    if asked is None:
        return
    if asked.holdout:
        what = "holdout takes its rows from all of them, and streamed rows are never all there"
        refuse(("evaluate", "holdout"), what, "name a split of its own: evaluate.split")
    elif asked.limit is None:
        what = "all rows of the held-out split would be read"
        refuse(("evaluate",), what, "set evaluate.limit")


def _check_data(where: KeyPath, data: DatasetConfig, blocks: Blocks) -> None:
    """What a data set says of its own settings, and what holds for sources alone or for none."""
    _check_settings(where, data, blocks)
    sources = sources_of(data, where)
    for key in ("name", "weight") if not sources else ():
        if getattr(data, key) is not None:
            what = f"{key} is of one of several sources, and there is one data set here"
            clash(blocks, "E040", [(*where, key)], what, f"drop {key}, or write method: mix")
    named = Counter(config.name for _, config in sources if config.name)
    for path, config in sources:
        if config.name and named[config.name] > 1:
            what = f"{named[config.name]} sources are called '{config.name}'"
            clash(blocks, "E040", [(*path, "name")], what, "give each its own name")
        if sources_of(config, path):
            what = "a source cannot be put together of others"
            clash(blocks, "E040", [(*path, "method")], what, "name its sources here")
        _check_settings(path, config, blocks)


def _check_settings(where: KeyPath, data: DatasetConfig, blocks: Blocks) -> None:
    if (dataset := blocks.classes.get(where)) is not None:
        refusals = asked(blocks, where, lambda: refusals_of(dataset(data)))
        for key, what, fix in refusals or ():
            clash(blocks, "E040", [(*where, *key)], what, fix)
