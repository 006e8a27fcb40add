"""Which form the rows of a file have: told from its first records, by their columns and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llmft.api.errors import DataError
from llmft.data.conversation import messages_in
from llmft.system.nearest import nearest

Goal = Literal["sft", "preferences", "reward", "rlhf", "classification"]
GOALS: tuple[Goal, ...] = ("sft", "preferences", "reward", "rlhf", "classification")

# What people call their columns, the usual name first.
_MESSAGES = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat")
_PROMPT = ("prompt", "instruction", "question", "query", "user", "problem", "input")
_ANSWER = (
    "completion", "response", "output", "answer", "assistant", "reply", "target", "solution",
)  # fmt: skip
_INPUT = ("input", "context")
_CHOSEN = ("chosen", "preferred", "better", "chosen_response")
_REJECTED = ("rejected", "dispreferred", "worse", "rejected_response")
_LABEL = ("label", "thumbs_up", "is_good", "liked")
_TEXT = ("text", "content", "document", "story", "body")
_CLASS = (
    "label", "class", "category", "labels", "intent", "sentiment", "topic", "label_text", "kind",
)  # fmt: skip
_CLASSIFIED = ("text", "sentence", "content", "review", "utterance", "title", "body", "document")
_MOST_CLASSES = 200
_SYSTEM = ("system", "system_prompt")
_HISTORY = ("history",)
_KNOWN = (*_MESSAGES, *_PROMPT, *_ANSWER, *_CHOSEN, *_REJECTED, *_LABEL, *_TEXT, *_CLASS)


@dataclass(frozen=True)
class Form:
    """One way to read a file.

    name: what it is called; said: what was seen, in words. method: the data set that reads it;
    settings: of its block. goals: what such rows can teach. read: columns that are looked at.
    prompt, answer: columns of text, where there are some, for a stage that needs them alone.
    spoken: whether the rows are messages already, and need a chat template.
    """

    name: str
    said: str
    method: str
    settings: Mapping[str, Any]
    goals: tuple[Goal, ...]
    read: tuple[str, ...]
    prompt: str = ""
    answer: str = ""
    spoken: bool = False
    columns: tuple[str, ...] = field(default=(), compare=False)

    @property
    def unread(self) -> tuple[str, ...]:
        """The columns that this reading leaves alone."""
        return tuple(name for name in self.columns if name not in self.read)


def forms_of(records: Sequence[Mapping[str, Any]]) -> list[Form]:
    """Return every form that the records have, the most telling first.

    records: the first of a file. Raises DataError (E101) where there is none, with the columns and
    what would be needed.
    """
    seen = _Columns(records)
    readers = (_chat, _preference, _unpaired, _instruction, _classification, _text)
    found = [form for read in readers if (form := read(seen)) is not None]
    if any(form.name == "instruction" for form in found):
        # A column of labels beside prompts and answers may be anything; of texts, too.
        found = [form for form in found if form.name not in ("text", "classification")]
    if any(form.name == "unpaired" for form in found):
        found = [form for form in found if form.name != "instruction"]
    if not found:
        raise DataError("E101", seen.nothing_fits(), fix="; ".join([*seen.likely(), _NEEDED]))
    return found


_NEEDED = (
    "rename columns to one of these forms, or write data.columns yourself (docs/data.md):"
    " messages; prompt and completion (or instruction, input, output); prompt, chosen and rejected;"
    " prompt, completion and label; text and label; text"
)


class _Columns:
    """The columns of some records, and what stands in them."""

    def __init__(self, records: Sequence[Mapping[str, Any]]) -> None:
        self.records = records
        self.names = tuple(dict.fromkeys(str(name) for record in records for name in record))

    def text(self, names: Sequence[str]) -> str:
        """Return the first of the columns that holds text in every record, or ''."""
        return self._first(names, _is_text)

    def some_text(self, names: Sequence[str]) -> str:
        """Return the first of the columns that holds text or nothing in every record, or ''."""
        return self._first(names, lambda value: value is None or isinstance(value, str))

    def messages(self, names: Sequence[str]) -> str:
        """Return the first of the columns that holds messages in every record, or ''."""
        return self._first(names, _is_messages)

    def truth(self, names: Sequence[str]) -> str:
        """Return the first of the columns that says yes or no in every record, or ''."""
        yes_or_no = (True, False, 0, 1, "true", "false", "True", "False", "0", "1")
        return self._first(names, lambda value: value in yes_or_no)

    def classes(self, names: Sequence[str]) -> str:
        """Return the first of the columns with few names or numbers, each in some records, or ''.

        The first records of a file in the order of its classes may have one class only.
        """
        column = self._first(names, lambda value: isinstance(value, str | int) and value != "")
        values = {record[column] for record in self.records} if column else set()
        few = len(values) <= min(_MOST_CLASSES, max(len(self.records) // 2, 2))
        return column if few and len({type(value) for value in values}) == 1 else ""

    def turns(self, names: Sequence[str]) -> str:
        """Return the first of the columns that holds lists, or nothing, in every record, or ''."""
        return self._first(names, lambda value: value is None or isinstance(value, list))

    def in_hh_format(self, name: str) -> bool:
        """Return whether a column of text holds conversations as Anthropic's HH writes them."""
        return all("\n\nAssistant:" in record[name] for record in self.records)

    def texts(self) -> list[str]:
        """Return every column of text."""
        return [name for name in self.names if self.text([name])]

    def _first(self, names: Sequence[str], fits: Any) -> str:
        called = {name.lower(): name for name in reversed(self.names)} | {n: n for n in self.names}
        for name in names:
            own = called.get(name)
            if own is not None and all(fits(record.get(own)) for record in self.records):
                return own
        return ""

    def nothing_fits(self) -> str:
        """Return what is there, where no form fits."""
        kinds = ", ".join(f"'{name}' ({self._kind(name)})" for name in self.names[:20])
        return f"the rows have no form that is known: there is {kinds or 'no column at all'}"

    def likely(self) -> list[str]:
        """Return which columns are nearly called as one that would be read."""
        return [
            f"'{name}' may be meant as {' or '.join(map(repr, near))}"
            for name in self.names[:20]
            if name.lower() not in _KNOWN and (near := nearest(name, _KNOWN))
        ]

    def _kind(self, name: str) -> str:
        values = [record.get(name) for record in self.records]
        if any(value is None for value in values):
            return "not in every row"
        if all(_is_messages(value) for value in values):
            return "messages"
        names = {"str": "text", "int": "number", "float": "number", "bool": "yes or no",
                 "list": "list", "dict": "object"}  # fmt: skip
        kinds = {names.get(type(value).__name__, type(value).__name__) for value in values}
        return " or ".join(sorted(kinds))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not _is_messages(value)


def _is_messages(value: Any) -> bool:
    try:
        value = messages_in(value, "")
    except DataError:  # text of messages that is no JSON: what reads it says so
        return True
    return bool(value) and all(
        isinstance(turn, dict)
        and ("role" in turn or "from" in turn)
        and not turn.keys().isdisjoint(("content", "value", "tool_calls"))
        for turn in value
    )


def _form(seen: _Columns, name: str, said: str, method: str, **given: Any) -> Form:
    return Form(name, said, method, columns=seen.names, **given)


def _chat(seen: _Columns) -> Form | None:
    column = seen.messages(_MESSAGES)
    if not column:
        return None
    settings = {} if column == "messages" else {"messages_column": column}
    read = (column, *(name for name in ("system", "tools") if name in seen.names))
    return _form(
        seen, "chat", f"conversations in '{column}'", "chat", settings=settings, goals=("sft",),
        read=read, spoken=True,
    )  # fmt: skip


def _preference(seen: _Columns) -> Form | None:
    texts = (seen.text(_CHOSEN), seen.text(_REJECTED))
    spoken = (seen.messages(_CHOSEN), seen.messages(_REJECTED))
    chosen, rejected = texts if all(texts) else spoken
    if not (chosen and rejected):
        return None
    prompt = seen.text(_PROMPT) or seen.messages(("prompt",))
    columns = _unless_usual(prompt=prompt or "prompt", chosen=chosen, rejected=rejected)
    said = f"pairs in '{chosen}' and '{rejected}'"
    said += f" with the prompt in '{prompt}'" if prompt else ", whose common beginning is asked"
    settings: dict[str, Any] = {"columns": columns} if columns else {}
    if not prompt and all(texts) and not seen.in_hh_format(chosen):
        settings["common_start"] = True
    alone = bool(prompt) and all(texts) and bool(seen.text((prompt,)))
    goals: tuple[Goal, ...] = ("preferences", "reward")
    return _form(
        seen, "preference", said, "preference", settings=settings,
        goals=(*goals, "rlhf") if alone else goals,
        read=tuple(name for name in (prompt, chosen, rejected) if name),
        prompt=prompt if alone else "", answer=chosen if alone else "", spoken=not all(texts),
    )  # fmt: skip


def _unpaired(seen: _Columns) -> Form | None:
    prompt, answer, label = seen.text(_PROMPT), seen.text(_ANSWER), seen.truth(_LABEL)
    if not (prompt and answer and label and prompt != answer):
        return None
    columns = _unless_usual(prompt=prompt, completion=answer, label=label)
    return _form(
        seen, "unpaired", f"single answers in '{answer}' to '{prompt}', judged by '{label}'",
        "unpaired", settings={"columns": columns} if columns else {}, goals=("preferences",),
        read=(prompt, answer, label), prompt=prompt, answer=answer,
    )  # fmt: skip


def _instruction(seen: _Columns) -> Form | None:
    prompt, answer = seen.text(_PROMPT), seen.text(_ANSWER)
    if not (prompt and answer and prompt != answer):
        return _spoken_instruction(seen)
    others = [name for name in _INPUT if name != prompt.lower()]
    given = seen.some_text(others) if prompt != "prompt" else ""
    system, history = seen.some_text(_SYSTEM), seen.turns(_HISTORY)
    columns = _unless_usual(prompt=prompt, completion=answer)
    columns |= {k: v for k, v in (("input", given), ("system", system), ("history", history)) if v}
    what = f"'{prompt}'" + (f" (about '{given}')" if given else "")
    return _form(
        seen, "instruction", f"prompts in {what} with answers in '{answer}'", "jsonl",
        settings={"columns": columns} if columns else {}, goals=("sft",),
        read=tuple(name for name in (prompt, given, answer, system, history) if name),
        prompt=prompt, answer=answer,
    )  # fmt: skip


def _spoken_instruction(seen: _Columns) -> Form | None:
    """Return how prompts of messages with their answers are read: TRL's conversational rows."""
    prompt = seen.messages(_PROMPT)
    answer = seen.messages(_ANSWER) or seen.text(_ANSWER)
    if not (prompt and answer and prompt != answer):
        return None
    system = seen.some_text(_SYSTEM)
    columns = _unless_usual(prompt=prompt, completion=answer) | (
        {"system": system} if system else {}
    )
    settings: dict[str, Any] = {"columns": columns} if columns else {}
    return _form(
        seen, "instruction", f"messages in '{prompt}' with answers in '{answer}'", "jsonl",
        settings={**settings, "chat": True}, goals=("sft",),
        read=tuple(name for name in (prompt, answer, system) if name), spoken=True,
    )  # fmt: skip


def _classification(seen: _Columns) -> Form | None:
    text, label = seen.text(_CLASSIFIED), seen.classes(_CLASS)
    if not (text and label and text != label):
        return None
    columns = _unless_usual(text=text, label=label)
    return _form(
        seen, "classification", f"texts in '{text}' with their class in '{label}'",
        "classification", settings={"columns": columns} if columns else {},
        goals=("classification",), read=(text, label),
    )  # fmt: skip


def _text(seen: _Columns) -> Form | None:
    texts = seen.texts()
    column = seen.text(_TEXT) or (texts[0] if len(seen.names) == len(texts) == 1 else "")
    if not column:
        return None
    return _form(
        seen, "text", f"plain text in '{column}', every token of which is learnt", "jsonl",
        settings={"columns": {"text": column}}, goals=("sft",), read=(column,),
    )  # fmt: skip


def _unless_usual(**columns: str) -> dict[str, str]:
    return {key: name for key, name in columns.items() if name != key}
