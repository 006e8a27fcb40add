"""The decisions on disk: one file a rater, one line a decision; an item's last one wins."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmft.api.errors import DataError, RecipeError
from llmft.system.plain_files import read_own, refuse_link

_LARGEST = 2**28
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,39}")
Ranking = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """What a rater thinks of one item.

    ranking: indices into the completions, best first, ties in one group; each index once.
    all_bad: no answer is any good, whatever their order. time: ISO 8601. seconds: it took so long.
    """

    item: str
    ranking: Ranking
    all_bad: bool
    time: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Ratings:
    """Every rater's last decision of every item, by the rater's name and the item's identity.

    remarks: what was found odd while reading, as sentences for people.
    """

    by_rater: Mapping[str, Mapping[str, Decision]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def checked_rater(name: str) -> str:
    """Return a rater's name; raise RecipeError where it cannot be that of a file."""
    if not _NAME.fullmatch(name):
        fix = "use 1 to 40 letters, digits, _ and -"
        raise RecipeError("E090", f"'{name}' cannot be the name of a rater", fix=fix)
    return name


def read_ratings(folder: Path) -> Ratings:
    """Return the ratings in a folder; there are none where it is missing.

    A last line that a kill cut short is left out with a remark: it was never confirmed. Raises
    DataError (E111) where another line is damaged.
    """
    by_rater, remarks = {}, []
    refuse_link(folder)
    for path in sorted(folder.glob("*.jsonl")):
        if not _NAME.fullmatch(path.stem):
            remarks.append(f"'{path}' is left out: it is not named after a rater")
            continue
        decisions, torn = read_rater(path)
        by_rater[path.stem] = decisions
        if torn:
            remarks.append(
                f"the last line of '{path}' is incomplete, as a kill leaves it, and is left out"
            )
    return Ratings(by_rater, tuple(remarks))


def read_rater(path: Path) -> tuple[dict[str, Decision], bool]:
    """Return one rater's decisions by item, and whether the file's last line is cut short."""
    *lines, tail = read_own(path, _LARGEST).split(b"\n")
    decisions: dict[str, Decision] = {}
    for number, line in enumerate(lines, 1):
        try:
            decision = _decision(json.loads(line))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            fix = "delete the line, and rank that item again"
            raise DataError("E111", f"{path}:{number}: this is not a decision", fix=fix) from error
        decisions[decision.item] = decision
    return decisions, bool(tail)


def _decision(value: Any) -> Decision:
    """Return a decision from a line; raise ValueError, TypeError or KeyError where it is none."""
    ranking = checked_ranking(value["ranking"])
    item, when, seconds = value["item"], value["time"], value["seconds"]
    kinds = ((item, str), (when, str), (seconds, int | float), (value["all_bad"], bool))
    if not all(isinstance(part, kind) for part, kind in kinds) or not math.isfinite(seconds):
        raise ValueError("of the wrong type")
    return Decision(item, ranking, value["all_bad"], when, float(seconds))


def checked_ranking(value: Any) -> Ranking:
    """Return groups of indices that hold each of 0 to n - 1 once; raise ValueError otherwise."""
    if not isinstance(value, list) or not all(isinstance(group, list) for group in value):
        raise ValueError("a ranking is a list of groups")
    flat = [index for group in value for index in group]
    whole = all(type(index) is int for index in flat) and all(value)
    if not whole or not flat or sorted(flat) != list(range(len(flat))):
        raise ValueError("a ranking names each answer once")
    return tuple(tuple(group) for group in value)
