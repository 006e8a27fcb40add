"""Public building blocks for plugin authors. Importing this imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmft.api import DataError, Encoded
from llmft.metrics import exact_match, f1, first_line, normalize_answer
from llmft.tables import read_file, read_records

if TYPE_CHECKING:
    from llmft.forward import LabelNll

__all__ = [
    "exact_match", "f1", "fill", "first_line", "label_nll", "normalize_answer", "read_file",
    "read_records", "text_of",
]  # fmt: skip

_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


def label_nll(model: Any, rows: Sequence[Encoded]) -> LabelNll:
    """Return the negative log-likelihood of every label in a batch; see `llmft.forward`."""
    from llmft import forward

    return forward.label_nll(model, rows)


def text_of(record: Mapping[str, Any], column: str, origin: str) -> str:
    """Return a record's text in a column, or by a template such as 'Question: {question}'.

    Raises DataError where the column is missing or holds no text.
    """
    if "{" in column:
        return fill(column, record, origin)
    if column not in record:
        raise DataError(
            "E101",
            f"{origin}: no column '{column}' (there is: {', '.join(map(str, record))})",
            fix=f"map the right one under data.columns in place of '{column}'",
        )
    value = record[column]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = "empty" if value is None else f"a {type(value).__name__}"
        raise DataError("E101", f"{origin}: the column '{column}' is {kind}, text is wanted")
    return str(value)


def fill(template: str, record: Mapping[str, Any], origin: str) -> str:
    """Return the template with each {field} replaced by the record's; {{ and }} are braces."""

    def one(match: re.Match[str]) -> str:
        whole = match.group(0)
        return whole[0] if whole in ("{{", "}}") else text_of(record, match.group(1), origin)

    return _FIELD.sub(one, template)
