"""Instructions with an input and an answer, as conversations: Stanford Alpaca's columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from llmft.api import ChatRow, Field, Line, Message, Prompt, Row, Settings, hookimpl
from llmft.toolkit import (
    TableConfig,
    TableDataset,
    asked_as,
    exact_match,
    f1,
    fields_of,
    fill,
    final_number,
    text_of,
    with_system,
)

Text = Annotated[str, Field(min_length=1, max_length=100_000)]


class Columns(Settings):
    """Which column, or which template of {columns}, gives what."""

    instruction: Line = Field("instruction", description="what is asked: a column or a template")
    input: Line = Field(
        "input", description="what it is asked of: a column; it may be empty or absent in a row"
    )
    output: Line = Field("output", description="the answer: a column or a template")


class Instruction(TableDataset["Instruction.Config"]):
    """Instructions with an input and an answer, as conversations of the model's chat template."""

    method = "instruction"
    rows = ("chat",)
    metrics = {"exact_match": exact_match, "f1": f1, "final_number": final_number}

    class Config(TableConfig):
        """Where the instructions are, and how one becomes a conversation."""

        columns: Columns = Field(default_factory=Columns, description="which columns hold what")
        with_input: Text = Field(
            "{instruction}\n{input}",
            description="the user's turn where there is an input, of {instruction} and {input};"
            " without one it is the instruction",
        )
        system: Text | None = Field(None, description="a system text for every row")
        system_with_input: Text | None = Field(
            None, description="another system text for rows with an input; default: system"
        )
        learn: Literal["all", "every_token"] = Field(
            "all", description="train on the answer, or on every token of the conversation"
        )

    def row(self, record: Mapping[str, Any], origin: str) -> Row:
        config = self.config
        asked = text_of(record, config.columns.instruction, origin)
        column = config.columns.input
        given = text_of(record, column if "{" in column else f"{{{column}?}}", origin)
        answer = Message(role="assistant", content=text_of(record, config.columns.output, origin))
        return ChatRow((*self._asked(asked, given, origin), answer), origin, config.learn)

    def ask(self, question: str) -> Prompt:
        asked = asked_as(self.config.columns.instruction, question)
        return self._asked(asked, "", "question")

    def example_records(self) -> Sequence[Mapping[str, Any]]:
        columns = self.config.columns
        read = (columns.instruction, columns.input, columns.output)
        fields = [field for column in read for field in fields_of(column)]
        return [dict.fromkeys(fields, f"example {number}") for number in range(4)]

    def _asked(self, asked: str, given: str, origin: str) -> tuple[Message, ...]:
        config = self.config
        system = (config.system_with_input if given else None) or config.system
        parts = {"instruction": asked, "input": given}
        turn = Message(
            role="user", content=fill(config.with_input, parts, origin) if given else asked
        )
        return with_system((turn,), system, origin)


@hookimpl
def llmft_datasets() -> list[type[Instruction]]:
    return [Instruction]
