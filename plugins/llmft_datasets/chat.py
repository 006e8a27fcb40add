"""Conversations, written by the model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from llmft.api import (
    ChatRow,
    CompletionRow,
    Conversation,
    DataError,
    Field,
    Line,
    Message,
    Prompt,
    Row,
    RowKind,
    hookimpl,
)
from llmft.toolkit import (
    TableConfig,
    TableDataset,
    exact_match,
    f1,
    final_number,
    messages_of,
    tools_of,
    untrained,
    with_system,
)

Role = Literal["system", "developer", "user", "assistant", "tool"]
Roles = Annotated[list[Role], Field(min_length=1, max_length=5)]
KWARGS = "chat_template_kwargs"
"""The column with template arguments of a row, as TRL has it."""
_SYSTEM = "system"


class Chat(TableDataset["Chat.Config"]):
    """Conversations as lists of messages (role and content, or ShareGPT's from and value)."""

    method = "chat"
    rows = ("chat", "completion")
    metrics = {"exact_match": exact_match, "f1": f1, "final_number": final_number}

    class Config(TableConfig):
        """Where the conversations are, and which turns are trained on."""

        messages_column: Line = Field("messages", description="the column with the messages")
        learn: Literal["all", "last", "every_token"] | Roles = Field(
            "all",
            description="train on every assistant turn, the last one only, every token, or the"
            " turns of a list of roles",
        )
        turns: Literal["auto", "whole", "rows"] = Field(
            "auto",
            description="one row for a conversation, or a row for each turn with the turns before"
            " it as the model is asked; auto: rows where the chat template rewrites earlier turns",
        )
        system: Annotated[str, Field(min_length=1, max_length=100_000)] | None = Field(
            None, description="a system text for conversations that have none"
        )
        drop_system: bool = Field(
            False, description="leave out the system turn that a conversation begins with"
        )
        system_column: Line | None = Field(
            None,
            description="the column with a row's system text; default: 'system' if it is there",
        )
        tools_column: Line = Field(
            "tools", description="the column with the tools: JSON schemas, or the JSON text of them"
        )

    def example_records(self) -> Sequence[Mapping[str, Any]]:
        return [
            {
                self.config.messages_column: [
                    {"role": "user", "content": f"Say {number}."},
                    {"role": "assistant", "content": f"{number}, as you wish."},
                ]
            }
            for number in range(4)
        ]

    def ask(self, question: str) -> Prompt:
        return with_system((Message(role="user", content=question),), self.config.system, "")

    def row_kind(self) -> RowKind:
        return "completion" if self.config.learn == "last" else "chat"

    def row(self, record: Mapping[str, Any], origin: str) -> Row:
        column, learn = self.config.messages_column, self.config.learn
        if column not in record:
            raise DataError(
                "E101",
                f"{origin}: no column '{column}' (there is: {', '.join(map(str, record))})",
                fix="name the right one as data.messages_column",
            )
        spoken = every = messages_of(record[column], origin)
        if self.config.drop_system and spoken[0]["role"] in ("system", "developer"):
            spoken = spoken[1:]
            if not spoken:
                raise DataError("E101", f"{origin}: there is no turn but the system's")
        messages = self._with_system(spoken, record, origin)
        before = len(messages) - len(every)
        skip = tuple(turn + before for turn in untrained(record[column], origin))
        if learn != "last":
            if not any(message["role"] == "assistant" for message in messages):
                raise DataError("E101", f"{origin}: no turn is the assistant's")
            roles = tuple(learn) if isinstance(learn, list) else learn
            return ChatRow(messages, origin, roles, self.config.turns, skip)
        if messages[-1]["role"] != "assistant":
            raise DataError("E101", f"{origin}: the last turn is not the assistant's")
        if len(messages) - 1 in skip:
            raise DataError(
                "E101", f"{origin}: the last turn is not to be trained on (its weight is 0)"
            )
        answer = messages[-1]["content"]
        more = messages[-1] if len(messages[-1]) > len(("role", "content")) else None
        return CompletionRow(messages[:-1], answer, (answer,) if answer else (), origin, more)

    def _with_system(
        self, messages: tuple[Message, ...], record: Mapping[str, Any], origin: str
    ) -> tuple[Message, ...]:
        """Return a record's messages with its system text, its tools and template arguments."""
        named = self.config.system_column
        text = record.get(named or _SYSTEM)
        if named and named not in record:
            raise DataError("E101", f"{origin}: no column '{named}'", fix="check system_column")
        if text is not None and not isinstance(text, str):
            raise DataError("E101", f"{origin}: the column '{named or _SYSTEM}' is not text")
        messages = with_system(messages, text, origin)
        if messages[0]["role"] not in ("system", "developer"):
            messages = with_system(messages, self.config.system, origin)
        tools = tools_of(record.get(self.config.tools_column), origin)
        names = record.get(KWARGS) or {}
        if not isinstance(names, Mapping):
            raise DataError("E101", f"{origin}: the column '{KWARGS}' is not a mapping of names")
        given = {key: value for key, value in names.items() if value is not None}
        return Conversation(messages, tools, given) if tools or given else messages


@hookimpl
def llmft_datasets() -> list[type[Chat]]:
    return [Chat]
