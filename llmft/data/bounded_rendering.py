"""Conversations as a chat template writes them, each in bounded time and memory.

A template is a program that came with a model or a recipe. transformers' sandbox keeps it from
files and from Python; nothing keeps it from counting for ever, or from doing so for one row only.
So every rendering, plain or traced, happens in a process that can be ended. A question is a whole
conversation with what is wanted of it, so that a row costs one exchange and not one per rendering.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property, lru_cache
from typing import Any

from llmft.api.errors import TrustError
from llmft.data.rendering import ChatTemplate, TemplateRefusal
from llmft.data.stops import Stops
from llmft.data.turns import TurnFault, TurnFinder, TurnRow
from llmft.system import bounded_child
from llmft.system.bounded_child import BoundedChild, OutOfBounds, WorkFailed
from llmft.system.nearest import did_you_mean

SECONDS, MEGABYTES = bounded_child.SECONDS, bounded_child.MEGABYTES


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a conversation.

    kind: a method of TurnFinder: 'whole', 'rows', 'auto', 'every_token', 'roles' or 'prompt'; or
    'text', the plain rendering. turns: the places of the turns that are trained on, which are the
    assistant's but for 'roles'. answer_next: for 'text', whether the generation prompt ends it.
    """

    kind: str
    turns: tuple[int, ...] = ()
    answer_next: bool = False


@dataclass(frozen=True, eq=False)
class Writing:
    """How conversations are written: all that is the same for the rows of a stage.

    source: the template. names: what it may read beside the messages. lost, missing_stop,
    learn_template: as in TurnFinder. asked: those of the names that the recipe gives, each of which
    is to be read. Two are equal where they are written alike: True is not 1 to a template.
    """

    source: str
    names: Mapping[str, Any]
    date: datetime.date
    stops: Stops
    lost: str
    missing_stop: str
    learn_template: str = "stop"
    asked: tuple[str, ...] = ()

    @cached_property
    def _text(self) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Writing) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


def written(
    writing: Writing,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any],
    names: Mapping[str, Any],
    wanted: Wanted,
) -> tuple[list[TurnRow], bool]:
    """Return what is wanted of a conversation, and whether the template asked for the day.

    names: template arguments of this conversation alone.
    Raises TurnFault where it cannot be written as wanted, TrustError (E604) where the template
    takes too long or too much.
    """
    told = [{key: value for key, value in turn.items() if value is not None} for turn in messages]
    question = (told, list(tools), dict(names), astuple(wanted))
    try:
        fault, rows, reads_clock = _renderer(writing).ask(question)
    except OutOfBounds as error:
        raise TrustError(
            "E604",
            f"the chat template {error} on a conversation of {len(messages)} messages",
            fix="give another template as model.chat_template, or prompt and completion columns",
        ) from error
    except WorkFailed as error:
        raise TurnFault(
            "refused",
            f"the chat template refuses the conversation: {error or error.kind}",
            "change the conversation, or give another template as model.chat_template",
        ) from error
    if fault is not None:
        raise TurnFault(*fault)
    return [TurnRow(*row) for row in rows], bool(reads_clock)


@lru_cache(maxsize=8)
def _renderer(writing: Writing) -> BoundedChild:
    # Imported here, so that the process has them from the start.
    from transformers.utils import chat_template_utils  # noqa: F401

    from llmft.data import tracing  # noqa: F401

    template = ChatTemplate(writing.source, writing.names, writing.date)

    def work(question: Any) -> tuple[Any, list[Any], bool]:
        messages, tools, names, wanted = question
        try:
            _refuse_unread(writing, template)
            rows = _in_some_form(writing, template, messages, tools, names, Wanted(*wanted))
        except TurnFault as fault:
            return (fault.kind, fault.what, fault.fix), [], template.reads_clock
        return None, [row.plain() for row in rows], template.reads_clock

    return BoundedChild(work, SECONDS, MEGABYTES)


def _refuse_unread(writing: Writing, template: ChatTemplate) -> None:
    """Refuse a template argument of the recipe that the template never looks at."""
    if not writing.asked:
        return
    try:
        read = template.names_read
    except TemplateRefusal:  # told when it is rendered
        return
    if unread := [name for name in writing.asked if name not in read]:
        raise TurnFault(
            "unread",
            f"the chat template reads no '{unread[0]}'",
            did_you_mean(unread[0], read - _GIVEN) or "leave it out of model.chat_template_kwargs",
        )


_GIVEN = frozenset(("messages", "tools", "documents", "add_generation_prompt"))


def _in_some_form(
    writing: Writing,
    template: ChatTemplate,
    messages: list[dict[str, Any]],
    tools: list[Any],
    names: Mapping[str, Any],
    wanted: Wanted,
) -> list[TurnRow]:
    """Return what is wanted of a conversation, given to the template as it takes it.

    Some templates take content as a list of parts only: where content as text is refused or lost,
    it is given so. Each row is tried alone, so none depends on those before it.
    """
    if "developer" not in template.source:
        messages = [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]

    def ask(given: list[dict[str, Any]]) -> list[TurnRow]:
        finder = TurnFinder(
            template,
            given,
            tools,
            writing.stops,
            names=names,
            lost=writing.lost,
            missing_stop=writing.missing_stop,
            learn_template=writing.learn_template,
        )
        return _answer(finder, wanted)

    try:
        return ask(messages)
    except TurnFault as fault:
        if fault.kind not in ("refused", "lost"):
            raise
        parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        try:
            return ask(parts)
        except TurnFault:
            raise fault from None


def _answer(finder: TurnFinder, wanted: Wanted) -> list[TurnRow]:
    turns = wanted.turns
    match wanted.kind:
        case "text":
            text = finder.render(len(finder.messages), answer_next=wanted.answer_next)
            return [TurnRow(text, (), ())]
        case "prompt":
            return [finder.prompt()]
        case "every_token":
            return [finder.every_token()]
        case "roles":
            return [finder.roles(turns)]
        case "rows":
            return finder.rows(turns)
        case "whole":
            return [finder.whole(turns)]
    try:
        return [finder.whole(turns)]
    except TurnFault as fault:
        if fault.kind != "whole":
            raise
    return finder.rows(turns)
