"""Conversations as people keep them, made one form: OpenAI's, ShareGPT's and Hugging Face's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import Any, cast

from llmft.api.errors import DataError
from llmft.api.rows import Conversation, Message
from llmft.data.strict_json import KeyTwiceError, strict_cell

ROLES = {
    "system": "system", "developer": "developer",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant",
    "chatgpt": "assistant", "ai": "assistant", "function_call": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool", "ipython": "tool",
    "tool_response": "tool", "function_response": "tool",
}  # fmt: skip
"""The words for roles, and what each is to a chat template."""
NULLS_LEFT_OUT = (
    "null values of tools and tool calls are left out, as tables in columns fill them in;"
    " JSON text keeps them"
)
_REASONING = ("reasoning_content", "thinking", "reasoning")
_TRAINED = ("train", "trainable", "loss")
_BLANK = "\u200b\u200c\u200d\u2060\ufeff\u00ad"


def messages_of(value: Any, origin: str) -> tuple[Message, ...]:
    """Return a record's messages, checked: known roles, text in each, turns that alternate.

    Raises DataError (E101) where a turn cannot be read; it is named by its place, from 0.
    """
    exact = isinstance(value, str)
    value = _list(value, origin)
    if not isinstance(value, list) or not value:
        raise _fault(origin, "the messages are not a list, or it is empty")
    messages = tuple(_message(item, turn, origin, exact) for turn, item in enumerate(value))
    spoken = [(turn, m["role"]) for turn, m in enumerate(messages) if m["role"] not in _SETTINGS]
    for (_, one), (turn, two) in pairwise(spoken):
        if one == two and one != "tool":
            raise _fault(origin, f"two {one} turns follow each other (turn {turn})")
    if not spoken or spoken[0][1] != "user":
        raise _fault(
            origin,
            "the first turn is not the user's",
            fix="take the turns before it out, or leave such rows out: on_bad_row: skip",
        )
    return messages


def messages_in(value: Any, origin: str) -> list[Any] | None:
    """Return the messages that a column's value holds, also as JSON text; None for other text.

    They are as they came: `messages_of` checks them. Raises DataError (E101) where the text is no
    JSON.
    """
    if isinstance(value, str) and not _MESSAGES.match(value):
        return None
    found = _list(value, origin)
    return found if isinstance(found, list) else None


def untrained(value: Any, origin: str) -> tuple[int, ...]:
    """Return the places of the messages that say they are not to be trained on: `weight: 0`."""
    found = []
    for turn, item in enumerate(_list(value, origin)):
        weight = item.get("weight")
        if weight is not None and (isinstance(weight, str) or weight not in (0, 1)):
            raise _fault(origin, f"turn {turn} has the weight {weight!r}; it may be 0 or 1")
        flags = [item[key] for key in _TRAINED if item.get(key) is not None]
        if wrong := [flag for flag in flags if not isinstance(flag, bool)]:
            raise _fault(origin, f"turn {turn}: {wrong[0]!r} is neither true nor false")
        if weight == 0 or False in flags:
            found.append(turn)
    return tuple(found)


def tools_of(value: Any, origin: str) -> tuple[Any, ...]:
    """Return the tools of a record: JSON schemas, a list of them or JSON text of it."""
    exact = isinstance(value, str)
    if isinstance(value, str):
        try:
            value = strict_cell(value) if value.strip() else []
        except ValueError as error:
            raise _fault(origin, f"the tools are not JSON: {error}") from error
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise _fault(origin, "the tools are not a list of JSON schemas")
    if not exact:
        _notice_nulls(value)
        value = without_none(value)
    return tuple(
        tool if "function" in tool else {"type": "function", "function": tool} for tool in value
    )


def with_system(
    messages: tuple[Message, ...], text: str | None, origin: str
) -> tuple[Message, ...]:
    """Return messages with a system turn before them, unless they have that very one."""
    if not text or not text.strip():
        return messages
    first = messages[0]
    if first["role"] in _SETTINGS:
        if first["content"].strip() == text.strip():
            return messages
        raise _fault(origin, "the row has a system text, and its messages have another one")
    return (Message(role="system", content=text), *messages)


def with_tools(
    messages: tuple[Message, ...], record: Mapping[str, Any], origin: str
) -> tuple[Message, ...]:
    """Return a prompt of messages with the tools in its record's column `tools`, if there are any.

    Raises DataError (E101) where the column holds none.
    """
    tools = tools_of(record.get("tools"), origin)
    return Conversation(messages, tools) if tools else messages


def without_none(value: Any) -> Any:
    """Return data without the keys that hold nothing: tables in columns give every key."""
    if isinstance(value, Mapping):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [without_none(item) for item in value]
    return value


@contextmanager
def noticing() -> Iterator[set[str]]:
    """Collect what a person should know of the values that are read in the meantime."""
    noticed: set[str] = set()
    token = _noticed.set(noticed)
    try:
        yield noticed
    finally:
        _noticed.reset(token)


_noticed: ContextVar[set[str] | None] = ContextVar("noticed", default=None)


def _notice_nulls(value: Any) -> None:
    noticed = _noticed.get()
    if noticed is not None and _holds_none(value):
        noticed.add(NULLS_LEFT_OUT)


def _holds_none(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(item is None or _holds_none(item) for item in value.values())
    return isinstance(value, list | tuple) and any(map(_holds_none, value))


def is_blank(text: str) -> bool:
    """Return whether nothing of a text can be seen: blanks, and characters of no width."""
    return not text.translate(dict.fromkeys(map(ord, _BLANK))).strip()


_SETTINGS = ("system", "developer")
# A list of objects whose first key is one of a message's, as JSON or as Python prints it.
_MESSAGES = re.compile(r"""\s*\[\s*\{\s*["'](role|from|content|value)["']\s*:""")
_PYTHON = re.compile(r"\s*\[\s*\{\s*'")


def _message(item: Any, turn: int, origin: str, exact: bool) -> Message:
    if not isinstance(item, Mapping):
        raise _fault(origin, f"turn {turn} is not a mapping")
    said = _first(item, "role", "from")
    role = ROLES.get(said.lower() if isinstance(said, str) else "")
    if role is None:
        raise _fault(origin, f"turn {turn} has the unknown role '{said}'")
    content = _first(item, "content", "value")
    calls = _calls(item, content if said == "function_call" else None, turn, origin, exact)
    if role == "tool" and not _is_parts(content):  # a tool's answer as JSON
        content = json.dumps(content, ensure_ascii=False)
    text = "" if said == "function_call" else _text(content, turn, origin, bool(calls))
    made: dict[str, Any] = {"role": role, "content": text}
    if calls:
        if role != "assistant":
            raise _fault(origin, f"turn {turn} is the {role}'s and has tool_calls")
        made["tool_calls"] = calls
    reasoning = _first(item, *_REASONING)
    if reasoning is not None and reasoning != "":
        if not isinstance(reasoning, str) or role != "assistant":
            raise _fault(origin, f"turn {turn} has reasoning that is not a text of the assistant's")
        made["reasoning_content"] = reasoning
    for key in ("name", "tool_call_id"):
        if isinstance(item.get(key), str):
            made[key] = item[key]
    if role == "assistant" and is_blank(text) and not calls:
        raise _fault(origin, f"turn {turn} has no text")
    return cast(Message, made)


def _first(item: Mapping[str, Any], *keys: str) -> Any:
    """Return what one of the keys holds: tables of columns give every key, and nothing in some."""
    return next((item[key] for key in keys if item.get(key) is not None), None)


def _text(content: Any, turn: int, origin: str, calls: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None and calls:
        return ""
    if isinstance(content, Sequence):
        return "".join(_part(part, turn, origin) for part in content)
    if content is not None:
        kind = type(content).__name__
        article = "an" if kind == "int" else "a"
        raise _fault(origin, f"turn {turn} has {article} {kind} in place of text")
    raise _fault(origin, f"turn {turn} has no text")


def _is_parts(content: Any) -> bool:
    """Return whether a content is text or parts, or nothing; else a tool's answer is data."""
    if isinstance(content, list | tuple):
        return all(
            isinstance(part, str) or (isinstance(part, Mapping) and "type" in part)
            for part in content
        )
    return content is None or isinstance(content, str)


def _part(part: Any, turn: int, origin: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
    if kind == "text" and not isinstance(part.get("text"), str):
        raise _fault(origin, f"turn {turn} has a part without 'text' in it")
    if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
        text: str = part["text"]
        return text
    raise _fault(
        origin,
        f"turn {turn} has a part of the type '{kind}', and only text can be trained on",
    )


def _calls(
    item: Mapping[str, Any], value: Any, turn: int, origin: str, exact: bool
) -> list[dict[str, Any]]:
    """Return a message's tool calls, in the form that chat templates take.

    exact: they come from JSON text, where a null is meant as one.
    """
    calls = item.get("tool_calls")
    if isinstance(calls, str):
        exact, calls = True, _json(calls, turn, origin)
    if not calls:
        one = item.get("function_call")
        one = value if one is None else one
        if isinstance(one, str):
            exact, one = True, _json(one, turn, origin)
        calls = one if isinstance(one, list) else [one] if one else []
    if not isinstance(calls, list):
        raise _fault(origin, f"turn {turn}: the tool_calls are not a list")
    return [_call(call, turn, origin, exact) for call in calls]


def _call(call: Any, turn: int, origin: str, exact: bool) -> dict[str, Any]:
    call = dict(call.items()) if isinstance(call, Mapping) else {}  # all is read: its index, too
    inner = call if call.get("function") is None else call["function"]
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise _fault(origin, f"turn {turn} has a tool call without a name")
    arguments = inner.get("arguments")
    arguments = {} if arguments is None else arguments
    if isinstance(arguments, str):  # OpenAI's; chat templates want what the text says
        exact, arguments = True, _json(arguments, turn, origin) if arguments.strip() else {}
    if not isinstance(arguments, Mapping):
        raise _fault(
            origin, f"turn {turn}: the arguments of '{inner['name']}' are not a JSON object"
        )
    if not exact:
        _notice_nulls(arguments)
        arguments = without_none(arguments)
    made = {"type": "function", "function": {"name": inner["name"], "arguments": dict(arguments)}}
    return {"id": call["id"], **made} if isinstance(call.get("id"), str) else made


def _json(text: str, turn: int, origin: str) -> Any:
    try:
        return strict_cell(text)
    except ValueError as error:
        raise _fault(origin, f"turn {turn} has a tool call that is not JSON: {error}") from error


def _list(value: Any, origin: str) -> Any:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return strict_cell(value)
        except KeyTwiceError as error:
            raise _fault(origin, str(error), "keep the one that is meant") from error
        except ValueError as error:
            what = f"the messages are text that is not JSON: {error}"
            if _PYTHON.match(value):
                what = "the messages are text as Python prints a list, not JSON"
            fix = "write them with json.dumps, or keep the file as .jsonl or .parquet"
            raise _fault(origin, what, fix) from error
    return list(value) if isinstance(value, tuple) else value


def _fault(origin: str, what: str, fix: str = "") -> DataError:
    return DataError("E101", f"{origin}: {what}", fix=fix)
