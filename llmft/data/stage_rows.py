"""The rows of a stage: of one source or several, some held out, checked before a run."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

from llmft.api import Dataset, Row
from llmft.api.errors import DataError, LeftOutRow
from llmft.api.method_settings import DropRows
from llmft.data.dropping import by_length
from llmft.data.encoding import Encoder
from llmft.data.held_out import held_out_together, hold_out
from llmft.data.mixed_rows import joined, mixed
from llmft.data.replacing import replaced
from llmft.data.usable_rows import Rows, at_source, leave_out, read_rows, usable_rows
from llmft.recipes.recipe import Stage
from llmft.recipes.sources import source_names, sources_of
from llmft.registry.return_checks import pin_of, records_of, row_of


def stage_rows(
    stage: Stage, dataset: Dataset[Any], seed: int, encoder: Callable[[], Encoder] | None = None
) -> tuple[Rows, Rows | None]:
    """Return a stage's training rows, and the rows it is judged on where it is judged.

    encoder: gives what writes them as token ids; needed where rows that cannot be written are
    skipped, and where rows are dropped by their length. Of several sources each is read by its own
    settings, and a share that is held out is one of each, but where it is of prompts.
    """
    if not dataset.sources:
        pair = _split_rows(stage, dataset, seed, encoder)
        _repeat(stage, dataset, *pair, seed)
        return pair
    assert stage.data is not None  # it has sources
    names, keys = source_names(stage.data), sources_of(stage.data)
    judged = stage.evaluate
    # Two sources may have rows of the same prompt.
    together = judged is not None and ((judged.holdout or 0) >= 1 or judged.holdout_by == "prompt")
    each = stage.model_copy(update={"evaluate": None}) if together else stage
    pairs = []
    for source, (key, _) in zip(dataset.sources, keys, strict=True):
        with at_source(key):
            pairs.append(_split_rows(each, source, seed, encoder))
    if together:
        assert judged is not None
        asked, by = judged.holdout or 0, judged.holdout_by
        pairs = held_out_together([pair[0] for pair in pairs], asked, seed, by)
    for source, pair in zip(dataset.sources, pairs, strict=True):
        _repeat(stage, source, *pair, seed)
    train = mixed(dataset, dict(zip(names, (pair[0] for pair in pairs), strict=True)), seed)
    if stage.evaluate is None:
        return train, None
    held_out = {name: pair[1] for name, pair in zip(names, pairs, strict=True) if pair[1]}
    return train, joined(held_out, stage.evaluate.limit)


def read_split(stage: Stage, dataset: Dataset[Any], split: str | None, limit: int | None) -> Rows:
    """Return the rows of a split, of every source; None: the one that each of them trains on."""
    if not dataset.sources:
        return read_rows(dataset, split or dataset.config.split, limit)
    assert stage.data is not None
    found = {}
    names, keys = source_names(stage.data), sources_of(stage.data)
    for name, source, (key, _) in zip(names, dataset.sources, keys, strict=True):
        with at_source(key):
            found[name] = read_rows(source, split or source.config.split, limit)
    return joined(found, limit)


def _split_rows(
    stage: Stage, dataset: Dataset[Any], seed: int, encoder: Callable[[], Encoder] | None
) -> tuple[Rows, Rows | None]:
    train, held_out = _read_both(stage, dataset, seed, encoder)
    for rows in (train, held_out):
        if rows is not None and encoder is not None:
            leave_out_by_tokens(rows, dataset, encoder)
    return train, held_out


def leave_out_by_tokens(found: Rows, dataset: Dataset[Any], encoder: Callable[[], Encoder]) -> None:
    """Take out rows that cannot be written where bad ones are skipped, and those of a length.

    Raises DataError where more than `max_bad_rows` are, and where no row is left.
    """
    if dataset.config.on_bad_row == "skip":
        leave_out(found, encoder().refusals(found.rows), dataset)
    if dataset.config.drop.by_length:
        _drop_by_length(found, dataset.config.drop, encoder())


def _drop_by_length(found: Rows, drop: DropRows, encoder: Encoder) -> None:
    most = max(drop.longer_than or 0, drop.shorter_than or 0)
    why = by_length(drop, encoder.lengths(found.rows, most))
    found.rows = [row for number, row in enumerate(found.rows) if number not in why]
    found.left_out.update(why.values())
    if not found.rows:
        raise DataError("E103", f"no row is left: {found.note()}", fix="change data.drop")


def _read_both(
    stage: Stage, dataset: Dataset[Any], seed: int, encoder: Callable[[], Encoder] | None
) -> tuple[Rows, Rows | None]:
    asked, config = stage.evaluate, dataset.config
    if config.streaming:
        some = islice(records_of(dataset, config.split), config.limit)
        train = usable_rows(dataset, some, config.buffer_size)
        if not train.rows:
            raise DataError(
                "E103", f"the split '{config.split}' has no rows", fix="check data.path"
            )
        train.pin = pin_of(dataset)
    else:
        train = read_rows(dataset, config.split, config.limit)
        if config.num_samples is not None:
            if encoder is not None:
                leave_out_by_tokens(train, dataset, encoder)  # so that the number stays
            train.rows = _drawn(train.rows, config.num_samples, seed)
    if asked is None:
        return train, None
    if asked.holdout:
        kept, held = hold_out(train.rows, asked.holdout, seed, asked.holdout_by)
        train = replace(train, rows=kept)
        return train, Rows(held[: asked.limit])
    split = asked.split or dataset.held_out_split
    return train, read_rows(dataset, split, asked.limit)


def _drawn(rows: list[Row], count: int | None, seed: int) -> list[Row]:
    """Return `count` rows drawn at random, in the order of the data; all where there are no more.

    The draw is that of `num_samples`, and the same at each call.
    """
    if count is None or count >= len(rows):
        return rows
    numbers = random.Random(f"{seed} num_samples").sample(range(len(rows)), count)
    return [rows[number] for number in sorted(numbers)]


def _repeat(
    stage: Stage, dataset: Dataset[Any], train: Rows, held_out: Rows | None, seed: int
) -> None:
    """Repeat training rows where `num_samples` is more than all rows: whole passes, then a draw.

    Rows that are held out of them are among the number, and are not repeated.
    """
    count = dataset.config.num_samples
    if count is None or not train.rows:
        return
    of_these = held_out is not None and stage.evaluate is not None and stage.evaluate.holdout
    wanted = count - (len(held_out.rows) if held_out is not None and of_these else 0)
    if wanted > len(train.rows):
        passes, rest = divmod(wanted, len(train.rows))
        train.rows = train.rows * passes + _drawn(train.rows, rest, seed)


def row_digests(train: Rows, judged: Rows | None) -> dict[str, str]:
    """Return the SHA-256 of the rows that a stage uses, as its identity and the lock have them."""
    return {"train": train.digest} | ({"evaluate": judged.digest} if judged else {})


FIRST_ROWS = 20
"""Rows of each split that are read before a run starts."""


def check_rows(dataset: Dataset[Any], stage: Stage) -> None:
    """Raise DataError where the first rows of a split that a stage reads cannot be used.

    Where bad rows are skipped, all of the first ones have to be bad.
    """
    asked = stage.evaluate
    splits = [dataset.config.split]
    if asked and not asked.holdout:
        splits.append(asked.split or dataset.held_out_split)
    for split in splits:
        try:
            _check_first_rows(dataset, split)
        except DataError as error:
            at_evaluate = asked is not None and split == asked.split and split is not splits[0]
            if not at_evaluate or error.faults[0].code != "E109":
                raise
            raise DataError.of([replace(f, path="evaluate.split") for f in error.faults]) from error


def first_row(dataset: Dataset[Any]) -> Row | None:
    """Return the first usable row of a data set's split, of its first records; None: there is none.

    Raises DataError where the records cannot be read.
    """
    for origin, record in islice(records_of(dataset, dataset.config.split), FIRST_ROWS):
        try:
            return row_of(dataset, replaced(dataset.config.replace, record, origin), origin)
        except (LeftOutRow, DataError):
            continue
    return None


def _check_first_rows(dataset: Dataset[Any], split: str) -> None:
    seen, usable, fault = 0, 0, None
    for origin, record in islice(records_of(dataset, split), FIRST_ROWS):
        seen += 1
        try:
            row_of(dataset, replaced(dataset.config.replace, record, origin), origin)
        except LeftOutRow:
            pass
        except DataError as error:
            fault = fault or error
            if dataset.config.on_bad_row == "fail":
                raise
            continue
        usable += 1
    if not seen:
        raise DataError("E103", f"the split '{split}' has no rows", fix="check data.path")
    if fault is not None and not usable:
        raise fault
