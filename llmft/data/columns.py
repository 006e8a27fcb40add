"""What a record holds in a column, or by a template of columns, as text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from llmft.api.errors import DataError
from llmft.data.conversation import is_blank, messages_in

_AS_CHAT = "messages go through the chat template: data.chat: true, or data.method: chat"
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*?)(\??)\}")


def text_of(record: Mapping[str, Any], column: str, origin: str) -> str:
    """Return a record's text in a column, or by a template such as 'Question: {question}'.

    Raises DataError where the column is missing or holds no text, or messages written as text; in
    a template these are text.
    """
    if "{" in column:
        return fill(column, record, origin)
    value = record.get(column)
    if isinstance(value, str) and messages_in(value, origin):
        raise DataError(
            "E101",
            f"{origin}: the column '{column}' holds messages, not text",
            fix=f"{_AS_CHAT}; or write '{{{column}}}' if they are meant as text",
        )
    return _text_of(record, column, origin)


def _text_of(record: Mapping[str, Any], column: str, origin: str) -> str:
    if column not in record:
        called = next((name for name in record if str(name).strip() == column), None)
        there = ", ".join(str(name) if name == str(name).strip() else repr(name) for name in record)
        raise DataError(
            "E101",
            f"{origin}: no column '{column}' (there is: {there})",
            fix=f"map the right one under data.columns in place of '{column}'"
            if called is None
            else f"take the blanks around '{column}' out of the file's names",
        )
    value = record[column]
    if isinstance(value, float) and math.isnan(value):
        value = None  # as pandas writes what is missing
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = "empty" if value is None else f"a {type(value).__name__}"
        messages = isinstance(value, list) and any(isinstance(item, Mapping) for item in value)
        fix = "write what is meant as text, such as yes and no" if isinstance(value, bool) else ""
        what = f"{origin}: the column '{column}' is {kind}, not text"
        raise DataError("E101", what, fix=_AS_CHAT if messages else fix)
    if isinstance(value, float):
        _refuse_spoilt(value, column, origin)
    return str(value)


def _refuse_spoilt(value: float, column: str, origin: str) -> None:
    if math.isinf(value):
        raise DataError("E101", f"{origin}: the column '{column}' is {value}, not text")
    if value.is_integer():
        raise DataError(
            "E101",
            f"{origin}: the column '{column}' is the number {value}, and would be written so;"
            " pandas makes such numbers of whole ones in a column with gaps",
            fix="write whole numbers, or text (pandas: .astype('Int64') or .astype('string'))",
        )


def answers_of(record: Mapping[str, Any], column: str | None, origin: str) -> tuple[str, ...]:
    """Return the right answers in a column, a text or a list of texts; none without a column.

    Raises DataError where they are all empty, as an answer never is.
    """
    if column is None:
        return ()
    value = record.get(column)
    if isinstance(value, list):
        found = tuple(_text_of({column: item}, column, origin) for item in value)
    else:
        found = (text_of(record, column, origin),)
    right = tuple(text for text in found if not is_blank(text))
    if found and not right:
        raise DataError(
            "E101",
            f"{origin}: the column '{column}' holds no right answer",
            fix="fill it, or leave such rows out: on_bad_row: skip",
        )
    return right


def fields_of(column: str) -> list[str]:
    """Return the record's fields that a column, or a template of {columns}, reads."""
    if "{" not in column:
        return [column]
    return [match[1] for match in _FIELD.finditer(column) if match[1]]


def asked_as(column: str, question: str) -> str:
    """Return a person's question as a prompt's column or template puts it.

    Raises DataError where a template reads several columns, which one question cannot fill.
    """
    if "{" not in column:
        return question
    matches = [match for match in _FIELD.finditer(column) if match[1]]
    needed = {match[1] for match in matches if not match[2]} or {match[1] for match in matches}
    if len(needed) != 1:
        raise DataError(
            "E101",
            f"the prompt template reads {len(needed)} columns ({', '.join(sorted(needed))}), and a"
            " question is one text",
            fix="write the whole prompt as it was trained on, and ask it with --raw",
        )
    return fill(column, dict.fromkeys(needed, question), "question")


def fill(template: str, record: Mapping[str, Any], origin: str) -> str:
    """Return the template with each {field} replaced by the record's; {{ and }} are braces.

    A field that is written {field?} may be empty or absent in a record; it then gives no text.
    """

    def one(match: re.Match[str]) -> str:
        whole, name, optional = match.group(0), match.group(1), match.group(2)
        if whole in ("{{", "}}"):
            return whole[0]
        value = record.get(name)
        absent = value is None or (isinstance(value, float) and math.isnan(value))
        if absent and optional:
            return ""
        try:
            return _text_of(record, name, origin)
        except DataError as error:
            if not absent:
                raise
            fix = f"write {{{name}?}} in the template if it may be empty or absent"
            raise DataError("E101", error.faults[0].what, fix=fix) from error

    return _FIELD.sub(one, template)
