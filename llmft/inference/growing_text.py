"""An answer's text as its tokens come, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class GrowingText:
    """Turns tokens into pieces of text that are never taken back.

    stop: texts at whose first occurrence the answer ends, before them. text: what is said so far,
    without special tokens. stopped: whether a stop text was found.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self.ids: list[int] = []
        self.text, self.stopped = "", False
        self._shown = 0

    def add(self, token: int) -> str:
        """Return the piece that a token adds; '' while it is half of a letter, or of a stop."""
        self.ids.append(token)
        self._read()
        if self.stopped:
            return self._piece(len(self.text))
        if self.text.endswith("\ufffd"):  # half of a letter
            return ""
        held = max((_held(self.text, stop) for stop in self._stop), default=0)
        return self._piece(len(self.text) - held)

    def end(self) -> str:
        """Return the rest."""
        return self._piece(len(self.text))

    def _read(self) -> None:
        self.text = self._tokenizer.decode(self.ids, skip_special_tokens=True)
        found = [at for stop in self._stop if (at := self.text.find(stop)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _piece(self, end: int) -> str:
        piece = self.text[self._shown : end]
        self._shown = max(self._shown, end)
        return piece


def _held(text: str, stop: str) -> int:
    """Return how many letters at a text's end may begin a stop text."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)
