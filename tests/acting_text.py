"""Text that acts on a terminal or turns a line round, and what of it is left."""

from __future__ import annotations

ACTS = "\x1b]0;owned\x07\x1b[31mred\x9b2J\u202e\u2066\r\x00\x7f\u200f"


def acts(text: str) -> list[str]:
    """Return the characters in a text that could act."""
    return [c for c in text if c in "\x1b\x07\x9b\u202e\u2066\r\x00\x7f\u200f\ud800"]
