"""Texts as token ids, each token with the character at which it starts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from llmft.data.bounded_tokens import BoundedTokens

_LONGEST_KEPT = 400
_OPTIONS: dict[str, Any] = {
    "add_special_tokens": False, "truncation": False, "return_attention_mask": False,
    "return_token_type_ids": False, "verbose": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Located:
    """A text's token ids, and the first character of each."""

    ids: list[int]
    starts: list[int]

    def at(self, character: int) -> int:
        """Return the number of the first token that starts at a character or after it."""
        return bisect_left(self.starts, character)


class TokenReader:
    """Tokenises rendered conversations, which write their own special tokens.

    A text is tokenised once, as the serving side tokenises a prompt. What is tokenised apart, such
    as an answer after its prompt, is tokenised after a line break, which is taken off again: else
    tokenizers that put a space before a text would put one inside the row, as they do where a part
    is to be a text of its own (`alone`).
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.fast = bool(getattr(tokenizer, "is_fast", False))
        self._tokens = BoundedTokens(tokenizer)
        self._added: frozenset[int] | None = None
        self._tails: dict[str, list[int]] = {}
        self._breaks: dict[bool, list[int]] = {}

    def located(self, texts: Sequence[str]) -> list[Located]:
        """Return each text's tokens; of a tokenizer without offsets, none has a place."""
        found = self._tokens.all_located(
            texts, offsets=self.fast, split_special_tokens=False, **_OPTIONS
        )
        return [Located(ids, starts) for ids, starts in found]

    def ids(self, text: str) -> list[int]:
        """Return the ids of one text."""
        return self._ids(text)

    def apart(
        self,
        text: str,
        cuts: Iterable[int],
        foreign: Sequence[tuple[int, int]] = (),
        *,
        alone: bool = False,
    ) -> Located:
        """Return a text's tokens, of which none reaches over a cut.

        alone: tokenise what stands between two cuts as a text of its own.
        foreign: parts that are text, although they spell special tokens; ValueError where the
        tokenizer makes a special token of such a part whatever is done.
        """
        cuts = set(cuts)
        borders = sorted({0, len(text), *cuts, *(place for part in foreign for place in part)})
        as_text = set(foreign)
        ids: list[int] = []
        starts: list[int] = []
        for start, stop in pairwise(borders):
            plain = (start, stop) in as_text
            first = start == 0 or (alone and start in cuts)
            piece = self._piece(text[start:stop], first=first, plain=plain)
            if plain and not self.added.isdisjoint(piece):
                raise ValueError(f"the tokenizer cannot write {text[start:stop]!r} as text")
            ids += piece
            starts += [start] * len(piece)
        return Located(ids, starts)

    def after(self, text: str, *, alone: bool = False) -> list[int]:
        """Return the ids of a text that follows others; special tokens in it stay text.

        alone: as those of a text of its own.
        """
        return self._piece(text, first=alone, plain=True)

    def prompt_length(self, row: Located, text: str, start: int) -> int | None:
        """Return how many of a row's first tokens are exactly those of `text[:start]`, or None.

        Only what follows the last added token before `start` is tokenised again: no token reaches
        over an added one.
        """
        if not self.fast:
            return None
        number = row.at(start)
        last = next((i for i in range(number - 1, -1, -1) if row.ids[i] in self.added), 0)
        cut = row.starts[last] if number else 0
        tail = self._tail(text[cut:start])
        count = last + len(tail)
        if row.ids[last:count] != tail or (count < len(row.starts) and row.starts[count] < start):
            return None
        return count

    @property
    def added(self) -> frozenset[int]:
        """The ids of the tokens that were added to the vocabulary, special ones among them."""
        if self._added is None:
            self._added = frozenset(self.tokenizer.added_tokens_decoder)
        return self._added

    def _tail(self, text: str) -> list[int]:
        found = self._tails.get(text)
        if found is None:
            found = self.ids(text)
            if len(text) <= _LONGEST_KEPT and len(self._tails) < 10_000:
                self._tails[text] = found
        return found

    def _piece(self, text: str, *, first: bool, plain: bool) -> list[int]:
        if first:
            return self._ids(text, plain=plain)
        if plain not in self._breaks:
            self._breaks[plain] = self._ids("\n", plain=plain)
        line = self._breaks[plain]
        ids = self._ids("\n" + text, plain=plain)
        return ids[len(line) :] if ids[: len(line)] == line else self._ids(text, plain=plain)

    def _ids(self, text: str, *, plain: bool = False) -> list[int]:
        return self._tokens.ids(text, split_special_tokens=plain, **_OPTIONS)
