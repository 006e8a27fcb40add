"""Single answers, each with a label: thumbs up or down, as people give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from llmft.api import (
    DataError,
    Field,
    Line,
    Message,
    Prompt,
    Row,
    Settings,
    Share,
    UnpairedRow,
    hookimpl,
)
from llmft.toolkit import (
    TableConfig,
    TableDataset,
    answers_of,
    asked_as,
    fields_of,
    messages_in,
    messages_of,
    text_of,
    with_tools,
    without_prompt,
)
from llmft_datasets.short_answers import METRICS

LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


class Columns(Settings):
    """Which column, or which template of {columns}, gives what."""

    prompt: Line | None = Field(
        None,
        description="a column or template, of text or of messages; default: 'prompt' where there is"
        " one, else the completion's messages before the last",
    )
    completion: Line = Field(
        "completion", description="the answer: a column or template, of text or of messages"
    )
    label: Line = Field(
        "label", description="a column: whether the answer is good; true and false, or 1 and 0"
    )
    answers: Line | None = Field(None, description="a column with the list of right answers")


class Unpaired(TableDataset["Unpaired.Config"]):
    """Unpaired preferences: prompt, completion and label, as TRL names them."""

    method = "unpaired"
    rows = ("unpaired",)
    metrics = METRICS

    class Config(TableConfig):
        """Where the answers are, and what their columns mean."""

        max_bad_rows: Share = Field(
            0.05, description="stop if more than this share of the rows is skipped"
        )
        columns: Columns = Field(default_factory=Columns, description="which columns hold what")
        chat: bool = Field(
            False,
            description="format text prompts as a user message, with the model's chat template",
        )
        strip_answers: bool = Field(
            True,
            description="of chat: leave out the spaces at an answer's start and end, for a chat"
            " template sets its own",
        )
        repeated_prompt: Literal["strip", "keep"] | None = Field(
            None,
            description="what is done with a completion that begins with its prompt: take the"
            " prompt off, or keep it; default: refuse such a row",
        )

    def row(self, record: Mapping[str, Any], origin: str) -> Row:
        columns = self.config.columns
        prompt, completion = self._parts(record, origin)
        if not prompt:
            raise DataError("E101", f"{origin}: the prompt is empty")
        if not completion.strip():
            raise DataError("E101", f"{origin}: the answer in '{columns.completion}' is empty")
        right = answers_of(record, columns.answers, origin)
        return UnpairedRow(prompt, completion, self._label(record, origin), right, origin)

    def ask(self, question: str) -> Prompt:
        return self._asked(asked_as(self.config.columns.prompt or "prompt", question))

    def _asked(self, text: str) -> Prompt:
        return (Message(role="user", content=text),) if self.config.chat else text

    def example_records(self) -> Sequence[Mapping[str, Any]]:
        columns = self.config.columns
        return [
            dict.fromkeys(fields_of(columns.completion), f"answer {number}")
            | dict.fromkeys(fields_of(columns.prompt or "prompt"), f"example {number}")
            | {columns.label: number % 2 == 0}
            | ({columns.answers: ["example"]} if columns.answers else {})
            for number in range(4)
        ]

    def _parts(self, record: Mapping[str, Any], origin: str) -> tuple[Prompt, str]:
        columns = self.config.columns
        column = columns.prompt or ("prompt" if record.get("prompt") is not None else None)
        asked = record.get(column) if column else None
        spoken = messages_in(asked, origin)
        answer = messages_in(record.get(columns.completion), origin)
        if answer is not None:
            before = list(messages_of(spoken, origin)) if spoken is not None else []
            if column and spoken is None:
                before = [Message(role="user", content=text_of(record, column, origin))]
            turns = messages_of([*before, *answer], origin)
            last = turns[-1]
            if last["role"] != "assistant":
                raise DataError("E101", f"{origin}: the last turn is not the assistant's")
            if more := sorted(set(last) - {"role", "content"}):
                what = f"{origin}: an answer has {more[0]}, and only text is judged"
                raise DataError("E101", what)
            return with_tools(turns[:-1], record, origin), last["content"]
        completion = text_of(record, columns.completion, origin)
        if spoken is not None:
            return with_tools(messages_of(spoken, origin), record, origin), completion
        text = text_of(record, column or "prompt", origin)
        (completion,) = without_prompt(text, [completion], self.config.repeated_prompt, origin)
        if self.config.chat and self.config.strip_answers:
            completion = completion.strip()
        return self._asked(text), completion

    def _label(self, record: Mapping[str, Any], origin: str) -> bool:
        column = self.config.columns.label
        value = record.get(column)
        known = LABELS.get(str(value).strip().lower())
        if known is None:
            is_there = f"is {value!r:.60}" if column in record else "is not there"
            raise DataError(
                "E101",
                f"{origin}: the label '{column}' {is_there}",
                fix="write true or false, or 1 or 0, or name another column in data.columns.label",
            )
        return known


@hookimpl
def llmft_datasets() -> list[type[Unpaired]]:
    return [Unpaired]
