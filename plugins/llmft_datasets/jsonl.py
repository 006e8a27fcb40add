"""Rows of your own, from local files or the hub: prompts with completions, or plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmft.api import (
    CompletionRow,
    DataError,
    Field,
    Line,
    Row,
    RowKind,
    Settings,
    TextRow,
    hookimpl,
)
from llmft.toolkit import (
    TableConfig,
    TableDataset,
    answers_of,
    fields_of,
    text_of,
)
from llmft_datasets.short_answers import METRICS


class Columns(Settings):
    """Which column, or which template of {columns}, gives what."""

    prompt: Line = Field("prompt", description="a column, or a template such as 'Q: {question}'")
    completion: Line = Field("completion", description="a column, or a template")
    text: Line | None = Field(
        None, description="a column or template of plain text, in place of prompt and completion"
    )
    answers: Line | None = Field(
        None, description="a column with the right answer, or the list of right answers"
    )


class Jsonl(TableDataset["Jsonl.Config"]):
    """Prompts with completions, or plain text, from .jsonl, .json, .csv, .parquet or the hub."""

    method = "jsonl"
    rows = ("completion", "text")
    metrics = METRICS

    class Config(TableConfig):
        """Where the rows are, and what their columns mean."""

        columns: Columns = Field(default_factory=Columns, description="which columns hold what")

    def row_kind(self) -> RowKind:
        return "text" if self.config.columns.text else "completion"

    def row(self, record: Mapping[str, Any], origin: str) -> Row:
        columns = self.config.columns
        if columns.text:
            return TextRow(_not_empty(text_of(record, columns.text, origin), origin), origin)
        completion = text_of(record, columns.completion, origin)
        return CompletionRow(
            text_of(record, columns.prompt, origin),
            _not_empty(completion, origin),
            answers_of(record, columns.answers, origin) or (completion.strip(),),
            origin,
        )

    def example_records(self) -> Sequence[Mapping[str, Any]]:
        columns = self.config.columns
        read = [columns.text] if columns.text else [columns.prompt, columns.completion]
        fields = [field for column in read for field in fields_of(column)]
        return [
            dict.fromkeys(fields, f"example {number}")
            | ({columns.answers: ["example"]} if columns.answers else {})
            for number in range(4)
        ]


def _not_empty(text: str, origin: str) -> str:
    if not text.strip():
        raise DataError("E101", f"{origin}: there is nothing to train on: the text is empty")
    return text


@hookimpl
def llmft_datasets() -> list[type[Jsonl]]:
    return [Jsonl]
