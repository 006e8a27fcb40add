"""Prompts to be answered, with the right answers where they are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from llmft.api import (
    DataError,
    Field,
    Line,
    Message,
    Prompt,
    PromptRow,
    Row,
    Settings,
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
    with_system,
    with_tools,
)
from llmft_datasets.short_answers import METRICS


class Columns(Settings):
    """Which column, or which template of {columns}, gives what."""

    prompt: Line = Field(
        "prompt", description="a column of text or messages, or a template such as 'Q: {question}'"
    )
    answers: Line | None = Field(
        None, description="a column with the right answer, or the list of right answers"
    )


class Prompts(TableDataset["Prompts.Config"]):
    """Prompts for a policy to answer, from local files of any format, or the hub."""

    method = "prompts"
    rows = ("prompt",)
    metrics = METRICS

    class Config(TableConfig):
        """Where the prompts are, and what their columns mean."""

        columns: Columns = Field(default_factory=Columns, description="which columns hold what")
        chat: bool = Field(
            False,
            description="format text prompts as a user message, with the model's chat template",
        )
        system: Annotated[str, Field(min_length=1, max_length=100_000)] | None = Field(
            None,
            description="a system text, for chat and for prompts of messages, for those that have"
            " none",
        )
        remove_response: bool = Field(
            False,
            description="leave out the assistant's turn that a prompt of messages ends with, as"
            " rows for supervised training have one",
        )
        reward_columns: list[Line] = Field(
            default_factory=list,
            max_length=50,
            description="columns that reward functions written in Python get, by their names",
        )

    def row(self, record: Mapping[str, Any], origin: str) -> Row:
        columns = self.config.columns
        asked = messages_in(record.get(columns.prompt), origin)
        prompt: Prompt
        if asked is not None:
            prompt = messages_of(asked, origin)
            if self.config.remove_response and prompt[-1]["role"] == "assistant":
                prompt = prompt[:-1]
            prompt = with_tools(self._with_system(prompt, origin), record, origin)
        else:
            text = text_of(record, columns.prompt, origin)
            if not text.strip():
                raise DataError("E101", f"{origin}: the prompt is empty")
            prompt = self._asked(text, origin)
        wanted = self.config.reward_columns
        if missing := next((name for name in wanted if name not in record), None):
            raise DataError(
                "E101",
                f"{origin}: no column '{missing}' (there is: {', '.join(map(str, record))})",
                fix="name the right one in data.reward_columns",
            )
        more = {name: record[name] for name in wanted}
        return PromptRow(prompt, answers_of(record, columns.answers, origin), origin, more or None)

    def example_records(self) -> Sequence[Mapping[str, Any]]:
        columns = self.config.columns
        return [
            dict.fromkeys(self.config.reward_columns, "example")
            | dict.fromkeys(fields_of(columns.prompt), f"example {number}")
            | ({columns.answers: ["example"]} if columns.answers else {})
            for number in range(4)
        ]

    def ask(self, question: str) -> Prompt:
        return self._asked(asked_as(self.config.columns.prompt, question), "question")

    def _asked(self, text: str, origin: str) -> str | tuple[Message, ...]:
        if self.config.chat:
            return self._with_system((Message(role="user", content=text),), origin)
        if self.config.system is not None:
            what = f"{origin}: the prompt is plain text, and data.system is of messages"
            raise DataError("E101", what, fix="write data.chat: true, or leave system out")
        return text

    def _with_system(self, messages: tuple[Message, ...], origin: str) -> tuple[Message, ...]:
        if messages[0]["role"] in ("system", "developer"):
            return messages
        return with_system(messages, self.config.system, origin)


@hookimpl
def llmft_datasets() -> list[type[Prompts]]:
    return [Prompts]
