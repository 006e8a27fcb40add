"""Recipes with a few random changes: what a slip of the hand, or of a program, may leave."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

_TOKENS = [
    "&a ", "*a", "!!x ", "<<: ", "? ", "- ", ": ", "{", "}", "[", "]", "|", ">", "'", '"', "#",
    "\t", "\n", "\r", "\u2028", "\ufeff", "\x85", "\0", "~", "null", "true", ".nan", "-1", "1e999",
    "${X}", "hf_AbCdEfGhIjKlMnOpQr", "run:a/b", "sft", "method", "learning_rate: ", "日本",
    "\u200b", "%", "---\n", "...\n", "0x", "@", "`", ",", "\\", "  ", "9" * 500, "stages", "\udcff",
]  # fmt: skip


def mutant(rng: random.Random, texts: Sequence[str]) -> str:
    """Return one of the texts with one to eight changes."""
    text = rng.choice(texts)
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        at = rng.randrange(len(text) + 1)
        how = rng.randrange(6)
        if how == 0:
            text = text[:at] + text[at + rng.randrange(1, 12) :]
        elif how == 1:
            text = text[:at] + rng.choice(_TOKENS) + text[at:]
        elif how == 2:
            text = text[:at] + chr(rng.randrange(256)) + text[at + 1 :]
        elif how == 3:
            lines = text.split("\n")
            lines.insert(rng.randrange(len(lines)), rng.choice(lines))
            text = "\n".join(lines)
        elif how == 4:
            words = re.findall(r"[\w.-]+", text) or ["x"]
            text = text.replace(rng.choice(words), rng.choice([*words, *_TOKENS]), 1)
        else:
            lines = text.split("\n")
            number = rng.randrange(len(lines))
            lines[number] = " " * rng.randrange(4) + lines[number].lstrip()
            text = "\n".join(lines)
    return text
