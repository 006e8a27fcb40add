"""The prompt in a row: what a model is asked, whatever kind of row it is. Imports no torch."""

from __future__ import annotations

from llmft.api import (
    ChatRow,
    ClassificationRow,
    CompletionRow,
    PreferenceRow,
    Prompt,
    PromptRow,
    Row,
    TextRow,
    UnpairedRow,
)

_WORDS = 12


def prompt_of(row: Row) -> Prompt:
    """Return what a row asks; of plain text, its first words."""
    if isinstance(row, CompletionRow | PreferenceRow | UnpairedRow | ClassificationRow | PromptRow):
        return row.prompt
    if isinstance(row, ChatRow):
        turns = [n for n, m in enumerate(row.messages) if m["role"] == "assistant"]
        return row.messages[: turns[-1]] if turns and turns[-1] else row.messages
    assert isinstance(row, TextRow)
    words = row.text.split(" ")
    return " ".join(words[: min(_WORDS, max(1, len(words) // 2))])
