"""Conversations, written by the model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from llmft.api import (
    ChatRow,
    CompletionRow,
    DataError,
    Field,
    Line,
    Message,
    Prompt,
    Row,
    RowKind,
    hookimpl,
)
from llmft.toolkit import TableConfig, TableDataset, exact_match, f1, final_number

# ShareGPT's words for the roles.
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_KNOWN = ("system", "user", "assistant", "tool")


class Chat(TableDataset["Chat.Config"]):
    """Conversations as lists of messages (role and content, or ShareGPT's from and value)."""

    method = "chat"
    rows = ("chat", "completion")
    metrics = {"exact_match": exact_match, "f1": f1, "final_number": final_number}

    class Config(TableConfig):
        """Where the conversations are, and which turns are trained on."""

        messages_column: Line = Field("messages", description="the column with the messages")
        learn: Literal["all", "last"] = Field(
            "all", description="train on every assistant turn, or on the last one only"
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
        return (Message(role="user", content=question),)

    def row_kind(self) -> RowKind:
        return "chat" if self.config.learn == "all" else "completion"

    def row(self, record: Mapping[str, Any], origin: str) -> Row:
        column = self.config.messages_column
        if column not in record:
            raise DataError(
                "E101",
                f"{origin}: no column '{column}' (there is: {', '.join(map(str, record))})",
                fix="name the right one as data.messages_column",
            )
        messages = messages_of(record[column], origin)
        if messages[-1]["role"] != "assistant":
            raise DataError("E101", f"{origin}: the last turn is not the assistant's")
        if self.config.learn == "all":
            return ChatRow(messages, origin)
        answer = messages[-1]["content"]
        return CompletionRow(messages[:-1], answer, (answer,), origin)


def messages_of(value: Any, origin: str) -> tuple[Message, ...]:
    """Return a record's messages, checked: known roles, text in each, turns that alternate."""
    if not isinstance(value, list) or not value:
        raise DataError("E101", f"{origin}: the messages are not a list, or it is empty")
    messages = tuple(_message(item, turn, origin) for turn, item in enumerate(value))
    spoken = [m["role"] for m in messages if m["role"] in ("user", "assistant")]
    for turn, (one, two) in enumerate(pairwise(spoken)):
        if one == two:
            raise DataError("E101", f"{origin}: two {one} turns follow each other (turn {turn})")
    if not spoken or spoken[0] != "user":
        raise DataError("E101", f"{origin}: the first turn is not the user's")
    return messages


def _message(item: Any, turn: int, origin: str) -> Message:
    if not isinstance(item, Mapping):
        raise DataError("E101", f"{origin}: turn {turn} is not a mapping")
    role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    role = _ROLES.get(role, role) if isinstance(role, str) else role
    if role not in _KNOWN:
        raise DataError("E101", f"{origin}: turn {turn} has the unknown role '{role}'")
    if not isinstance(content, str) or (role == "assistant" and not content.strip()):
        raise DataError("E101", f"{origin}: turn {turn} has no text")
    return Message(role=str(role), content=content)


@hookimpl
def llmft_datasets() -> list[type[Chat]]:
    return [Chat]
