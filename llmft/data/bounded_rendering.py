"""Conversations as a chat template writes them, each in bounded time and memory.

A template is a program that came with a model or a recipe. transformers' sandbox keeps it from
files and from Python; nothing keeps it from counting for ever, or from doing so for one row only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from llmft.api.errors import TrustError
from llmft.system import bounded_child
from llmft.system.bounded_child import BoundedChild, OutOfBounds, WorkFailed

CHARACTERS = 10_000_000
SECONDS, MEGABYTES = bounded_child.SECONDS, bounded_child.MEGABYTES


class TemplateRefusal(ValueError):
    """A template refuses a conversation, or cannot be read; the text says why."""


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> str:
    """Return a conversation as a template writes it.

    kwargs: what the template sees beside the messages: `add_generation_prompt`, special tokens.
    Raises TrustError (E604) where it takes too long or too much, TemplateRefusal where it refuses.
    """
    return render_with_spans(template, messages, tools, kwargs, spans=False)[0]


def render_with_spans(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    spans: bool = True,
) -> tuple[str, list[tuple[int, int]]]:
    """Return as `render`, with the (start, end) of what the template marks as generated.

    The marks are `{% generation %}` blocks; a template without them marks nothing.
    """
    asked = (template, list(messages), None if tools is None else list(tools), dict(kwargs or {}))
    try:
        text, found = _renderer().ask((*asked, spans))
    except OutOfBounds as error:
        raise TrustError(
            "E604",
            f"the chat template {error} on a conversation of {len(messages)} messages",
            fix="give another template as model.chat_template, or prompt and completion columns",
        ) from error
    except WorkFailed as error:
        raise TemplateRefusal(str(error) or error.kind) from error
    return text, [(start, end) for start, end in found]


def rendered(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None = None,
    **kwargs: Any,
) -> str:
    """Return a conversation as `tokenizer.apply_chat_template(..., tokenize=False)` does.

    A tokenizer whose class writes conversations by code of its own, with no template, is asked.
    """
    from transformers import PreTrainedTokenizerBase

    usual = PreTrainedTokenizerBase.apply_chat_template
    if getattr(type(tokenizer), "apply_chat_template", usual) is not usual:
        given = {"tools": tools} if tools is not None else {}
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **given, **kwargs))
    told = [{key: value for key, value in turn.items() if value is not None} for turn in messages]
    template = tokenizer.get_chat_template(None, tools)
    return render(template, told, tools, {**tokenizer.special_tokens_map, **kwargs})


@cache
def _renderer() -> BoundedChild:
    # Imported here, so that the process has it from the start.
    from transformers.utils import chat_template_utils

    def work(question: Any) -> tuple[str, list[tuple[int, int]]]:
        template, messages, tools, kwargs, spans = question
        (text,), found = chat_template_utils.render_jinja_template(
            conversations=[messages],
            tools=tools,
            chat_template=template,
            return_assistant_tokens_mask=spans,
            **kwargs,
        )
        if len(text) > CHARACTERS:
            raise MemoryError
        return text, list(found[0]) if found else []

    return BoundedChild(work, SECONDS, MEGABYTES)
