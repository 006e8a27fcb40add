"""A chat template as a program: conversations rendered with a fixed clock, and traced.

The environment is the one that transformers makes, with its sandbox. A traced rendering is the same
program run on text that carries where it comes from (`traced.py`).
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from llmft.data import traced
from llmft.data.traced import Trace, Traced

NOW = datetime.date(2024, 7, 26)
"""What a template that writes the day writes where the recipe gives none: Llama 3's own."""
CHARACTERS = 10_000_000
"""The longest rendering; a longer one is taken for an endless one."""
_REASONING = ("reasoning_content", "thinking", "reasoning")


class TemplateRefusal(Exception):
    """A template raised; its own message is the text."""


class Part(NamedTuple):
    """A field of a conversation: the message's place (-1 for the tools), and the field's name."""

    message: int
    name: str


@dataclass(frozen=True)
class TracedText:
    """A rendering whose characters are known by their origin; fields are numbered as in `parts`."""

    text: str
    parts: Sequence[Part]
    trace: Trace

    def missing(self) -> dict[Part, str]:
        """Return the parts that the template leaves out: 'all' of it or 'part' of it."""
        found = traced.missing(self.text, self.trace)
        lost: dict[Part, str] = {}
        for number, much in found.items():
            part = self.parts[number]
            lost[part] = much if lost.get(part, much) == much else "part"
        if lost:  # a part has several fields, such as a call's name and arguments
            for number, part in enumerate(self.parts):
                if part in lost and number not in found and self.trace.texts[number].strip():
                    lost[part] = "part"
        return lost

    def printed(self) -> set[Part]:
        """Return the parts that are written as Python's representation of them."""
        return {self.parts[number] for number in self.trace.printed}

    def ranges(self) -> list[tuple[int, int, Part]]:
        """Return which characters of the rendering come from a part, in order."""
        runs = traced.runs_of(self.text)
        return sorted((run.start, run.stop, self.parts[run.field]) for run in runs)


class ChatTemplate:
    """One template with the names it may use: special tokens, and what the recipe gives."""

    def __init__(
        self, source: str, names: Mapping[str, Any] | None = None, now: datetime.date = NOW
    ) -> None:
        self.source = source
        self.names = dict(names or {})
        self.now = datetime.datetime.combine(now, datetime.time(12))
        self.reads_clock = False

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        *,
        answer_next: bool = False,
        names: Mapping[str, Any] | None = None,
    ) -> str:
        """Return a conversation as text; raise TemplateRefusal where the template does."""
        given = [named_reasoning(message) for message in messages]
        return self._run(self._plain, given, tools, answer_next, names)

    def trace(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        *,
        answer_next: bool = False,
        names: Mapping[str, Any] | None = None,
    ) -> TracedText:
        """Return the same text as `render`, with the origin of its characters."""
        trace = Trace()
        parts: list[Part] = []
        given = [
            _traced_message(named_reasoning(message), number, trace, parts)
            for number, message in enumerate(messages)
        ]
        known = _Tracer(trace, parts, Part(-1, "tools")).value(tools) if tools else tools
        text = self._run(self._tracing, given, known, answer_next, names)
        return TracedText(text, parts, trace)

    @cached_property
    def names_read(self) -> frozenset[str]:
        """The names that the template reads and does not set itself."""
        from jinja2 import meta

        return frozenset(meta.find_undeclared_variables(self._plain.environment.parse(self.source)))

    def _run(self, program: Any, messages: Any, tools: Any, answer_next: bool, names: Any) -> str:
        try:
            text: str = program.render(
                {
                    **self.names,
                    **(names or {}),
                    "messages": messages,
                    "tools": tools,
                    "documents": None,
                    "add_generation_prompt": answer_next,
                    "strftime_now": self._clock,
                }
            )
        except MemoryError:
            raise
        except Exception as error:  # a template is a program: it may raise anything
            said = str(error) or repr(error)
            name = type(error).__name__
            raise TemplateRefusal(said if name == "TemplateError" else f"{name}: {said}") from error
        if len(text) > CHARACTERS:
            raise MemoryError
        return text

    def _clock(self, form: str) -> str:
        self.reads_clock = True
        return self.now.strftime(form)

    @cached_property
    def _plain(self) -> Any:
        return _compiled(self.source)

    @cached_property
    def _tracing(self) -> Any:
        return _tracing(self.source)


def named_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message with its reasoning under all names that templates read, as transformers."""
    found = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    if found is None:
        return dict(message)
    return {"thinking": found, **message, "reasoning_content": found}


def _compiled(source: str) -> Any:
    from transformers.utils import chat_template_utils

    try:
        return chat_template_utils._compile_jinja_template(source)
    except MemoryError:
        raise
    except Exception as error:
        raise TemplateRefusal(f"{type(error).__name__}: {error}") from error


@lru_cache(maxsize=16)
def _tracing(source: str) -> Any:
    from llmft.data.tracing import environment_like

    return environment_like(_compiled(source).environment).from_string(source)


class _Tracer:
    """Makes a field of every string in a value."""

    def __init__(self, trace: Trace, parts: list[Part], part: Part) -> None:
        self.trace, self.parts, self.part = trace, parts, part
        self._known: dict[str, int] = {}

    def text(self, text: str) -> Traced:
        made = self.trace.text(text)
        self.parts.append(self.part)
        return made

    def value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value

    def keyed(self, value: Any) -> Any:
        """As `value`, and the keys are fields too."""
        if isinstance(value, Mapping):
            return {
                self.text(k) if isinstance(k, str) else k: self.keyed(v) for k, v in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.keyed(item) for item in value]
        return self.value(value)


def _traced_message(
    message: dict[str, Any], number: int, trace: Trace, parts: list[Part]
) -> dict[str, Any]:
    def tracer(name: str) -> _Tracer:
        return _Tracer(trace, parts, Part(number, name))

    made = dict(message)
    content = message.get("content")
    if isinstance(content, str):
        made["content"] = tracer("content").text(content)
    elif isinstance(content, list | tuple):
        made["content"] = [_traced_piece(piece, tracer("content")) for piece in content]
    reasoning = message.get("reasoning_content")
    if isinstance(reasoning, str):
        first = tracer("reasoning_content").text(reasoning)
        copies = [key for key in _REASONING if message.get(key) == reasoning]
        made.update(dict.fromkeys(copies, first))
    calls = message.get("tool_calls")
    if isinstance(calls, list | tuple):
        made["tool_calls"] = [
            _traced_call(call, tracer(f"tool_calls[{i}]")) for i, call in enumerate(calls)
        ]
    return made


def _traced_piece(piece: Any, tracer: _Tracer) -> Any:
    if isinstance(piece, str):
        return tracer.text(piece)
    if isinstance(piece, Mapping) and isinstance(piece.get("text"), str):
        return {**piece, "text": tracer.text(piece["text"])}
    return piece


def _traced_call(call: Any, tracer: _Tracer) -> Any:
    if not isinstance(call, Mapping):
        return call
    made = dict(call)
    inner = call.get("function")
    if isinstance(inner, Mapping):
        made["function"] = _named_call(inner, tracer)
        return made
    return _named_call(made, tracer)


def _named_call(call: Mapping[str, Any], tracer: _Tracer) -> dict[str, Any]:
    made = dict(call)
    if isinstance(call.get("name"), str):
        made["name"] = tracer.text(call["name"])
    if "arguments" in call:
        made["arguments"] = tracer.keyed(call["arguments"])
    return made
