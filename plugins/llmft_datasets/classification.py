"""Texts with a class: columns text and label, as data sets of classification have them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llmft.api import (
    ClassificationRow,
    DataError,
    Field,
    Label,
    Line,
    Message,
    Prompt,
    Row,
    Settings,
    hookimpl,
)
from llmft.toolkit import (
    TableConfig,
    TableDataset,
    asked_as,
    fields_of,
    messages_in,
    messages_of,
    text_of,
)


class Columns(Settings):
    """Which column, or which template of {columns}, gives what."""

    text: Line | None = Field(
        None,
        description="what is classified: a column or template, of text or of messages; default:"
        " 'text' where there is one, else 'messages'",
    )
    text_pair: Line | None = Field(
        None,
        description="a second text, which the tokenizer puts behind the first as it does pairs",
    )
    label: Line = Field(
        "label",
        description="a column: the class by its name or number, a list of classes, or a number to"
        " predict",
    )


class Classification(TableDataset["Classification.Config"]):
    """Texts, pairs of texts or conversations, each with its class."""

    method = "classification"
    rows = ("classification",)

    class Config(TableConfig):
        """Where the texts are, and what their columns mean."""

        columns: Columns = Field(default_factory=Columns, description="which columns hold what")
        chat: bool = Field(
            False,
            description="format a text as a user message, with the model's chat template",
        )

    def row(self, record: Mapping[str, Any], origin: str) -> Row:
        column = self.config.columns.label
        if record.get(column) is None:
            is_there = "is null" if column in record else "is not there"
            there = ", ".join(map(str, record))
            raise DataError(
                "E101",
                f"{origin}: the label '{column}' {is_there} (there is: {there})",
                fix="name another column in data.columns.label, or leave such rows out:"
                " on_bad_row: skip",
            )
        return self._row(record, label_of(record[column], column, origin), origin)

    def unlabelled(self, record: Mapping[str, Any], origin: str) -> Row:
        return self._row(record, None, origin)

    def ask(self, question: str) -> Prompt:
        return self._asked(asked_as(self.config.columns.text or "text", question))

    def example_records(self) -> Sequence[Mapping[str, Any]]:
        columns = self.config.columns
        return [
            dict.fromkeys(fields_of(columns.text or "text"), f"example {number}")
            | dict.fromkeys(fields_of(columns.text_pair or ""), f"second {number}")
            | {columns.label: number % 2}
            for number in range(4)
        ]

    def _row(self, record: Mapping[str, Any], label: Label | None, origin: str) -> Row:
        columns = self.config.columns
        column = columns.text or ("text" if "text" in record else "messages")
        if column not in record and columns.text is None:
            column = "text"  # the fault then names it
        spoken = None if "{" in column else messages_in(record.get(column), origin)
        pair = text_of(record, columns.text_pair, origin) if columns.text_pair else None
        if spoken is not None:
            prompt: Prompt = messages_of(spoken, origin)
        else:
            text = text_of(record, column, origin)
            if not text.strip():
                raise DataError("E101", f"{origin}: the text in '{column}' is empty")
            prompt = self._asked(text)
        if pair is not None and not isinstance(prompt, str):
            raise DataError(
                "E101",
                f"{origin}: a conversation has no second text, and data.columns.text_pair names"
                f" '{columns.text_pair}'",
                fix="write one template of both: columns: {text: '{first} {second}'}",
            )
        return ClassificationRow(prompt, label, pair, origin)

    def _asked(self, text: str) -> Prompt:
        return (Message(role="user", content=text),) if self.config.chat else text


def label_of(value: Any, column: str, origin: str) -> Label:
    """Return a label as a row keeps it; DataError where it can be none."""
    if isinstance(value, list | tuple):
        return tuple(_class_of(one, column, origin) for one in value)
    if isinstance(value, float) and math.isfinite(value):
        return value
    return _class_of(value, column, origin)


def _class_of(value: Any, column: str, origin: str) -> str | int:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return value
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise DataError(
        "E101",
        f"{origin}: the label '{column}' is {value!r:.60}",
        fix="write a class's name or number, a list of them, or a number to predict",
    )


@hookimpl
def llmft_datasets() -> list[type[Classification]]:
    return [Classification]
