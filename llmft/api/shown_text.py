"""A stranger's text as it may be shown: it is read, and does nothing."""

from __future__ import annotations

import re

# What steers a terminal or turns a line round: control characters but line breaks and tabs, C1, the
# bidirectional marks and overrides (no letter is among them), and halves of surrogate pairs, which
# no file takes.
ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb"
    "\ud800-\udfff]"
)


def escaped(text: str) -> str:
    """Return the text with every character that acts, in place of being seen, as <U+001B>.

    The one function for rows, answers, names, errors and whatever else was not written by llmft,
    on a terminal, in a pipe, in a log or in a model card.
    """
    return ACTING.sub(lambda found: f"<U+{ord(found.group()):04X}>", text)


def on_one_line(text: str) -> str:
    """Return a name as `escaped` does, with its line breaks and tabs as <U+000A> too.

    For names in lists, tables and comments: a name that begins lines could pass for what we say.
    """
    return re.sub("[\t\n]", lambda found: f"<U+{ord(found.group()):04X}>", escaped(text))


def escaped_in_json(text: str) -> str:
    """Return JSON that means the same, with every character that acts written as an escape."""
    return ACTING.sub(lambda found: f"\\u{ord(found.group()):04x}", text)
