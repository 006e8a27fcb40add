"""How a recipe has conversations written: template arguments, the day, where an answer stops."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llmft.api.errors import DataError
from llmft.data.rendering import NOW
from llmft.data.stops import Stops


@dataclass(frozen=True)
class ChatFormat:
    """What of a recipe's model decides how conversations are written.

    template_kwargs: names that the chat template reads. stop_ids: the ids at which the model's own
    settings stop generation; stop: more such tokens, as text. lost_text: what is done where the
    template leaves out a message's text. append_eos: whether end-of-text is put after an
    answer that the template ends with no stop, or at the end of every row ('once' or 'always').
    missing_stop: what is done with such an answer where nothing is put after it. learn_template:
    how much of what the template writes around an answer is trained on. tokenize_apart: whether an
    answer is tokenised as a text of its own.
    """

    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    date: datetime.date = NOW
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    lost_text: Literal["refuse", "note"] = "refuse"
    append_eos: bool | Literal["once", "always"] = False
    missing_stop: Literal["note", "refuse"] = "note"
    learn_template: Literal["stop", "turn", "none", "eos"] = "stop"
    tokenize_apart: bool = False


PLAIN = ChatFormat()
"""What is so where a recipe says nothing."""


def stops_of(tokenizer: Any, chat: ChatFormat, end: int | None) -> Stops:
    """Return the tokens at which generation stops: the model's, the tokenizer's, the recipe's."""
    named = (stop_id(tokenizer, word) for word in chat.stop)
    ids = frozenset(i for i in (end, *chat.stop_ids, *named) if i is not None)
    added = tokenizer.added_tokens_decoder
    words = {str(added[i]) if i in added else str(tokenizer.decode([i])) for i in ids} - {""}
    special = {str(token) for token in added.values() if token.special}
    end_of_text = str(tokenizer.eos_token or "")
    if chat.append_eos and not end_of_text:
        raise DataError(
            "E108",
            "model.append_eos: the tokenizer has no end-of-text token",
            fix="name its eos_token in tokenizer_config.json, or take the tokenizer of another"
            " model: model.tokenizer",
        )
    appended = end_of_text if chat.append_eos is True else ""
    own = tuple(word for word in (end_of_text, *chat.stop) if word)
    ends_rows = chat.append_eos in ("once", "always")
    return Stops(tuple(sorted(words)), (), tuple(sorted(special)), ids, appended, own, ends_rows)


def stop_id(tokenizer: Any, word: str) -> int:
    """Return the id of a token that the recipe names as `model.stop`."""
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise DataError(
            "E108",
            f"model.stop: {word!r} is {len(ids)} tokens, and generation stops at a single one",
            fix="name one token of the tokenizer",
        )
    return int(ids[0])
