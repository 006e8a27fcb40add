"""Texts in columns that a recipe has written otherwise before a record is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmft.api.errors import DataError
from llmft.api.method_settings import Replacement


def replaced(
    settings: Sequence[Replacement], record: Mapping[str, Any], origin: str
) -> Mapping[str, Any]:
    """Return a record with the replacements made, one after the other; the given one stays.

    A column that is null stays null. Raises DataError (E101) where a column is not there, or holds
    no text.
    """
    if not settings:
        return record
    made = dict(record)
    for one in settings:
        if one.column not in made:
            raise DataError(
                "E101",
                f"{origin}: no column '{one.column}' (there is: {', '.join(map(str, record))})",
                fix="name the right one in data.replace",
            )
        value = made[one.column]
        if value is None:
            continue
        if not isinstance(value, str):
            raise DataError(
                "E101",
                f"{origin}: the column '{one.column}' holds no text in which to replace",
                fix="name a column of text in data.replace",
            )
        made[one.column] = one.of(value)
    return made
