"""Rows that are held out of training rows: by row, or by prompt."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from llmft.api import Row
from llmft.api.errors import DataError
from llmft.data.duplicates import prompt_of
from llmft.data.usable_rows import Rows


def held_out_together(
    sources: Sequence[Rows], count: float, seed: int, by: Literal["row", "prompt"]
) -> list[tuple[Rows, Rows | None]]:
    """Return what stays of each source and what is held out, so many rows of all together."""
    every = [row for source in sources for row in source.rows]
    _, held = hold_out(every, count, seed, by)
    out = {id(row) for row in held}
    pairs: list[tuple[Rows, Rows | None]] = []
    for source in sources:
        kept = [row for row in source.rows if id(row) not in out]
        mine = [row for row in source.rows if id(row) in out]
        pairs.append((replace(source, rows=kept), Rows(mine) if mine else None))
    return pairs


def hold_out(
    rows: Sequence[Row], asked: float, seed: int, by: Literal["row", "prompt"] = "row"
) -> tuple[list[Row], list[Row]]:
    """Return the rows that stay and the rows held out, at least one of each; order is kept.

    asked: how many are held out; below 1, which share. by: draw rows, or prompts with all of their
    rows, until there are so many rows or the few more of a prompt; one prompt stays in any case.
    """
    if len(rows) < 2:
        raise DataError("E103", "there is only one row, so none can be held out")
    if asked >= len(rows):
        what = (
            f"evaluate.holdout takes {asked:,} rows of {len(rows):,}, and none is left to train on"
        )
        raise DataError("E103", what, fix="write fewer, or a share such as 0.1")
    count = int(asked) if asked >= 1 else min(max(1, round(len(rows) * asked)), len(rows) - 1)
    if by == "row":
        held = set(random.Random(seed).sample(range(len(rows)), count))
    else:
        held = _of_whole_prompts(rows, count, seed)
    return (
        [row for i, row in enumerate(rows) if i not in held],
        [row for i, row in enumerate(rows) if i in held],
    )


def _of_whole_prompts(rows: Sequence[Row], count: int, seed: int) -> set[int]:
    """Return the numbers of about `count` rows: all of those of the prompts drawn.

    A prompt of more rows than are still wanted is passed over, and the smallest of those fills up.
    """
    groups: dict[tuple[str, int | None], list[int]] = {}
    for number, row in enumerate(rows):
        prompt = prompt_of(row)
        key = ("row", number) if prompt is None else ("prompt", prompt)
        groups.setdefault(key, []).append(number)
    if len(groups) < 2:
        raise DataError(
            "E103",
            "all rows have the same prompt, so none can be held out by its prompt",
            fix="write evaluate.holdout_by: row, or name another split",
        )
    held: set[int] = set()
    drawn = list(groups.values())
    random.Random(seed).shuffle(drawn)
    left: list[list[int]] = []
    for group in drawn:
        if len(held) + len(group) <= count:
            held.update(group)
        else:
            left.append(group)
    if len(held) < count and len(left) > 1:  # one stays
        smallest = min(left, key=len)
        held.update(smallest)
    return held
