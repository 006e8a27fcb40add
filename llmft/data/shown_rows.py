"""One row as it is trained on: its text with special tokens, what is learnt, whose turn it is."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any

from llmft.api import (
    ChatRow,
    ClassificationRow,
    CompletionRow,
    Encoded,
    EncodedClassification,
    EncodedPair,
    EncodedPrompt,
    Message,
    PreferenceRow,
    PromptRow,
    Row,
    TextRow,
    UnpairedRow,
)
from llmft.api.rows import IGNORED

Item = Encoded | EncodedPair


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text: whether its tokens are trained on, whether it is a special token.

    role: whose turn it is, where that is known.
    """

    text: str
    learnt: bool = False
    special: bool = False
    role: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """A row of tokens, or what two rows share. name: such as 'chosen'; '' where there is one."""

    name: str
    pieces: tuple[Piece, ...]
    tokens: int
    trained_tokens: int


@dataclass(frozen=True, slots=True)
class ShownRow:
    """One row as it is trained on.

    picked: why it is shown, some of `PICKS`. turn: '2 of 3' where a conversation makes a row for
    each turn. piece: the same of a text that is cut into pieces. lost: what happened to it, where
    it was cut or dropped. whole_tokens: its length before it was cut. answers: the right answers to
    a prompt, or the classes. ids: input_ids and labels by name.
    """

    origin: str
    picked: tuple[str, ...]
    parts: tuple[Part, ...]
    turn: str = ""
    lost: str = ""
    whole_tokens: int | None = None
    answers: tuple[str, ...] = ()
    ids: Mapping[str, Mapping[str, Sequence[int]]] = field(default_factory=dict)
    piece: str = ""


def token_rows(item: Item) -> tuple[Encoded, ...]:
    """Return the token rows of an item: two of a pair."""
    return (item.chosen, item.rejected) if isinstance(item, EncodedPair) else (item,)


def shown_row(
    tokenizer: Any,
    item: Item,
    row: Row | None,
    picked: tuple[str, ...],
    turn: str,
    lost: str,
    whole: Sequence[Item] | None,
) -> ShownRow:
    """Return a row as it is shown; names as of `ShownRow`. whole: its items, uncut, where known."""
    tokens = [len(one.input_ids) for it in whole or () for one in token_rows(it)]
    parts: tuple[Part, ...]
    names: tuple[str, ...]
    if isinstance(item, EncodedPair):
        names = ("chosen", "rejected")
        start = _part("prompt", tokenizer, item.chosen, row, 0, item.shared)
        ends = (
            _part(name, tokenizer, one, row, item.shared)
            for name, one in zip(names, token_rows(item), strict=True)
        )
        parts = (start, *ends)
    else:
        names = ("prompt",) if isinstance(item, EncodedPrompt) else ("",)
        parts = (_part(names[0], tokenizer, item, row, 0),)
    return ShownRow(
        item.origin,
        picked,
        parts,
        "" if isinstance(row, TextRow) else turn,
        lost,
        max(tokens, default=None),
        _right(item),
        {
            name or "row": {"input_ids": list(one.input_ids), "labels": list(one.labels)}
            for name, one in zip(names, token_rows(item), strict=True)
        },
        turn if isinstance(row, TextRow) else "",
    )


def _right(item: Item) -> tuple[str, ...]:
    """Return the right answers to an item, or its classes, as they are shown."""
    if isinstance(item, EncodedPrompt):
        return item.answers
    if not isinstance(item, EncodedClassification):
        return ()
    return tuple(map(str, item.label if isinstance(item.label, tuple) else (item.label,)))


def _part(
    name: str, tokenizer: Any, item: Encoded, row: Row | None, start: int, end: int | None = None
) -> Part:
    end = len(item.input_ids) if end is None else end
    labels = (IGNORED, *item.labels[1:])  # the first token is never predicted
    trained = end - start - labels[start:end].count(IGNORED)
    pieces = tuple(pieces_of(tokenizer, item, messages_of(row), start, end))
    return Part(name, pieces, end - start, trained)


def pieces_of(
    tokenizer: Any, item: Encoded, messages: Sequence[Message], start: int, end: int
) -> Iterator[Piece]:
    """Yield the text of an item's tokens from `start` to `end`, split where a mark changes.

    Their texts together are what the tokenizer decodes, with special tokens.
    """
    special = special_ids(tokenizer)
    marks = [
        (label != IGNORED and at > 0, token in special)
        for at, (token, label) in enumerate(zip(item.input_ids, item.labels, strict=True))
    ]
    whole = _decoded(tokenizer, item.input_ids[:end])
    begin = last = _same(_decoded(tokenizer, item.input_ids[:start]), whole)
    text, spans, at = whole[begin:], list[tuple[int, int, bool, bool]](), start
    for mark, run in groupby(marks[start:end]):
        at += len(list(run))
        # Half a character at the end of a run is shown with the next one.
        now = len(whole) if at == end else _same(_decoded(tokenizer, item.input_ids[:at]), whole)
        spans.append((last - begin, max(now, last) - begin, *mark))
        last = max(now, last)
    roles = list(_roles(text, messages))
    for low, high, learnt, is_special in spans:
        cuts = sorted({low, high, *(c for a, b, _ in roles for c in (a, b) if low < c < high)})
        for a, b in pairwise(cuts):
            role = next((role for x, y, role in roles if x <= a and b <= y), "")
            if text[a:b]:
                yield Piece(text[a:b], learnt, is_special, "" if is_special else role)


def special_ids(tokenizer: Any) -> set[int]:
    """Return the ids of the tokens that a tokenizer counts as special."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {*tokenizer.all_special_ids, *(number for number, t in added.items() if t.special)}


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    if not ids:
        return ""
    return str(
        tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    )


def _same(before: str, now: str) -> int:
    """Return how many characters the texts share at their start."""
    if now.startswith(before):
        return len(before)
    size = min(len(before), len(now))
    return bisect_left(range(size), True, key=lambda n: before[: n + 1] != now[: n + 1])


def _roles(text: str, messages: Sequence[Message]) -> Iterator[tuple[int, int, str]]:
    """Yield where the messages' contents are, in order; one that is not found is left out."""
    at = 0
    for message in messages:
        content = message.get("content")
        content = content.strip() if isinstance(content, str) else ""
        found = _found(text, content, at) if content else -1
        if found >= 0:
            at = found + len(content)
            yield found, at, message["role"]


def _found(text: str, content: str, at: int) -> int:
    """Return where a text stands as words of its own, or -1."""
    while (at := text.find(content, at)) >= 0:
        around = text[at - 1 : at] + content[0], content[-1] + text[at + len(content) :][:1]
        if not any(len(pair) == 2 and pair.isalnum() for pair in around):
            return at
        at += 1
    return -1


def messages_of(row: Row | None) -> Sequence[Message]:
    """Return the turns of a row's conversation; none where it is plain text."""
    if isinstance(row, ChatRow):
        return row.messages
    if row is None or isinstance(row, TextRow) or isinstance(row.prompt, str):
        return ()
    return row.prompt


def texts_of(row: Row) -> list[str]:
    """Return the texts that a row holds."""
    texts: Iterable[Any]
    if isinstance(row, TextRow):
        texts = (row.text,)
    elif isinstance(row, ChatRow):
        texts = (message.get("content") for message in row.messages)
    else:
        asked = row.prompt
        prompt = [asked] if isinstance(asked, str) else [turn.get("content") for turn in asked]
        if isinstance(row, CompletionRow | UnpairedRow):
            texts = (*prompt, row.completion)
        elif isinstance(row, PreferenceRow):
            texts = (*prompt, row.chosen, row.rejected)
        elif isinstance(row, ClassificationRow):
            texts = (*prompt, row.text_pair)
        else:
            assert isinstance(row, PromptRow)
            texts = prompt
    return [text for text in texts if isinstance(text, str)]
