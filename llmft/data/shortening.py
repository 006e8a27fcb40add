"""Huge texts cut before they are tokenised: what lies behind the last token kept costs memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

from llmft.api import ChatRow, CompletionRow, Conversation, Message, Prompt, Row, TextRow

_LEAST = 20_000  # characters; a shorter text is never looked at
_NORMALIZED = 4  # so many characters a normaliser may make one of


class Shortener:
    """Cuts a row's texts that hold more tokens than are kept of it, and only those.

    A text of `limit` times the longest token of the vocabulary has at least `limit` tokens, unless
    the tokenizer takes characters out; who shortens looks whether the tokens are more than `limit`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def row(self, row: Row, limit: int | None, *, end: bool) -> Row:
        """Return a row whose texts give more than `limit` tokens still, or the same row.

        end: prompts keep their end, as where a row too long loses the start of its prompt; else
        their start. Completions keep their start.
        """
        if limit is None or not _is_long(row):
            return row
        most = self._characters(limit)
        if isinstance(row, TextRow):
            return replace(row, text=row.text[:most])
        if isinstance(row, ChatRow):
            return replace(row, messages=_messages(row.messages, most, end=False))
        if isinstance(row, CompletionRow) and row.message is None:
            prompt = self.prompt(row.prompt, limit, end=end)
            return replace(row, prompt=prompt, completion=row.completion[:most])
        return row

    def prompt(self, prompt: Prompt, limit: int | None, *, end: bool = True) -> Prompt:
        """Return a prompt that gives more than `limit` tokens still, or the same one."""
        if limit is None or not _is_long_prompt(prompt):
            return prompt
        most = self._characters(limit)
        if isinstance(prompt, str):
            return prompt[-most:] if end else prompt[:most]
        return _messages(prompt, most, end=end)

    def _characters(self, limit: int) -> int:
        return max((limit + 1) * self._longest, _LEAST)

    @cached_property
    def _longest(self) -> int:
        longest = max(map(len, self._tokenizer.get_vocab()), default=1)
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return longest * (1 if backend is not None and backend.normalizer is None else _NORMALIZED)


def _is_long(row: Row) -> bool:
    if isinstance(row, TextRow):
        return len(row.text) > _LEAST
    if isinstance(row, ChatRow):
        return _is_long_prompt(row.messages)
    if isinstance(row, CompletionRow):
        return len(row.completion) > _LEAST or _is_long_prompt(row.prompt)
    return False


def _is_long_prompt(prompt: Prompt) -> bool:
    if isinstance(prompt, str):
        return len(prompt) > _LEAST
    return any(len(message["content"]) > _LEAST for message in prompt)


def _messages(messages: Iterable[Message], most: int, *, end: bool) -> tuple[Message, ...]:
    made = tuple(
        cast(Message, {**one, "content": one["content"][-most:] if end else one["content"][:most]})
        for one in messages
    )
    return messages.of(made) if isinstance(messages, Conversation) else made
