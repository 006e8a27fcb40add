"""Rows that a recipe leaves out: by a column's value, as repeated ones, or by their length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llmft.api import Row
from llmft.api.errors import DataError
from llmft.api.method_settings import Condition, DropRows
from llmft.data.duplicates import content_of

REPEATED = "that repeat an earlier one"


class Dropped:
    """What a recipe's `drop` says of records, one after the other.

    A reason is counted under the words that say it; '' where a record or row stays.
    """

    def __init__(self, settings: DropRows) -> None:
        self._settings = settings
        self._seen: set[int] = set()

    def record(self, record: Mapping[str, Any], origin: str) -> str:
        """Return why a record is left out by a column's value.

        Raises DataError where the column is not there, or has no number to compare.
        """
        for condition in self._settings.where:
            if _holds(condition, record, origin):
                return told(condition)
        return ""

    def row(self, row: Row) -> str:
        """Return why a row is left out that says the same as an earlier one."""
        if not self._settings.duplicates:
            return ""
        content = content_of(row)
        if content in self._seen:
            return REPEATED
        self._seen.add(content)
        return ""


def by_length(settings: DropRows, lengths: Sequence[int]) -> dict[int, str]:
    """Return the rows that are left out by their length in tokens, by number, each with why."""
    found = {}
    for number, length in enumerate(lengths):
        if settings.shorter_than is not None and length < settings.shorter_than:
            found[number] = f"shorter than {settings.shorter_than} tokens"
        elif settings.longer_than is not None and length > settings.longer_than:
            found[number] = f"longer than {settings.longer_than} tokens"
    return found


def told(condition: Condition) -> str:
    """Return a condition in words, such as: where 'score' is below 0.5."""
    name, value = condition.test
    words = {
        "equals": f"is {value!r}", "not_equals": f"is not {value!r}",
        "one_of": f"is one of {value!r}", "none_of": f"is none of {value!r}",
        "below": f"is below {value}", "above": f"is above {value}",
        "is_empty": "is empty" if value else "is not empty",
    }  # fmt: skip
    return f"where '{condition.column}' {words[name]}"


def _holds(condition: Condition, record: Mapping[str, Any], origin: str) -> bool:
    name, wanted = condition.test
    column = condition.column
    if column not in record:
        if name == "is_empty":
            return bool(wanted)
        raise DataError(
            "E101",
            f"{origin}: no column '{column}' (there is: {', '.join(map(str, record))})",
            fix="name the right one in data.drop.where, or leave the row out: on_bad_row: skip",
        )
    value = record[column]
    if name == "is_empty":
        return _is_empty(value) is wanted
    if name in ("equals", "not_equals"):
        return _same(value, wanted) == (name == "equals")
    if name in ("one_of", "none_of"):
        return any(_same(value, one) for one in wanted) == (name == "one_of")
    number = _number(value)
    if number is None:
        raise DataError("E101", f"{origin}: the column '{column}' is no number to compare")
    return bool(number < wanted if name == "below" else number > wanted)


def _is_empty(value: Any) -> bool:
    if isinstance(value, float) and math.isnan(value):
        return True
    return value is None or (isinstance(value, str | list | dict) and not _stripped(value))


def _stripped(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _same(value: Any, wanted: Any) -> bool:
    """Return whether a column's value is the one that the recipe names; CSV has texts alone."""
    if isinstance(value, str) and not isinstance(wanted, str):
        return value.strip().lower() == str(wanted).lower()
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)


def _number(value: Any) -> float | None:
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except ValueError:
        return None
    return None if isinstance(value, bool) or math.isnan(number) else number
