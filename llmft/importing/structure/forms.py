"""Rows: where they are, which split, of which form, by what columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llmft.importing.configuration import Key
from llmft.importing.peer_translation import Translation
from llmft.importing.tables import known_rows
from llmft.recipes.tree import visible

_SPLIT = re.compile(r"([\w.-]+)(?:\[:(\d+)(%?)\])?")


def split(t: Translation, name: str, key: Key | None) -> None:
    """Write the split, and the number of rows where it names one: train[:500]."""
    found = _SPLIT.fullmatch(name)
    if found is None or found[3]:
        if t.schema.has("data.split", t.methods):
            t.note(
                "cannot",
                key or "split",
                f"a part of a split such as '{visible(name)[:60]}'",
                block="data",
                missing="split by share or joined",
            )
        return
    if found[1] != "train" or key is not None:
        t.set("data.split", found[1], key)
    if found[2]:
        t.set("data.limit", int(found[2]), key, "the first rows of the split")


def facts_of(path: str) -> Mapping[str, Any] | None:
    """Return what is known of a public data set's rows: `form` and columns."""
    return known_rows().get(path.lower())


def source(t: Translation, path: str, key: Key | None, subset: Key | None = None) -> None:
    """Write where the rows are."""
    t.set("data.path", path, key)
    if subset is not None:
        t.set("data.subset", str(subset.value), subset)


ALPACA_OPENING = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately"
    " completes the request."
)

ALPACA_PAIRED = ", paired with an input that provides further context"

"""Stanford Alpaca's opening (tatsu-lab/stanford_alpaca), and what it has more where rows do."""

FORMS = ("chat", "prompt-completion", "text", "preference", "prompts", "unpaired", "instruction")

"""What `--rows` may name: the forms of rows."""

_FITTING = {
    "sft": ("chat", "prompt-completion", "text", "instruction"),
    "dpo": ("preference",),
    "orpo": ("preference",),
    "reward": ("preference",),
    "cpo": ("preference",),
    "kto": ("unpaired",),
    "ppo": ("prompts",),
    "grpo": ("prompts",),
    "rloo": ("prompts",),
}


def form_of(t: Translation, path: str, key: Key | None, trainer: str) -> tuple[str, dict[str, Any]]:
    """Return the form of a data set's rows and what is known of its columns; '' where unknown.

    The peer looks at the columns when it runs; here the user says it, or the table of known data
    sets does, or the alignment leaves one choice only.
    """
    fitting = _FITTING.get(trainer, ())
    facts = dict(facts_of(path) or {})
    form = t.rows or str(facts.pop("form", ""))
    if t.rows:
        facts = {}
    facts.pop("source", None)
    if form and fitting and form not in fitting:
        t.note(
            "cannot",
            key or path,
            f"'{trainer}' cannot train on rows of the form '{form}'",
            block="data",
            missing="rows of another form",
        )
        return "", {}
    if not form and len(fitting) == 1 and fitting[0] != "preference":
        form = fitting[0]
    if not form:
        hint = " or ".join(fitting) or "chat"
        t.note(
            "decide",
            key or path,
            f"the columns of '{visible(path)[:80]}' decide how it is trained on, and they are not"
            f" known here: --rows {hint}",
            block="data",
            missing="the form of the rows is not in the file",
        )
    return form, facts


def rows_of(t: Translation, form: str, facts: Mapping[str, Any], *, learn: str) -> None:
    """Choose the data's method for a form, and name its columns.

    facts: columns that differ from the usual names. learn: which turns of a chat are learnt.
    """
    columns = {name: column for name, column in facts.items() if name not in ("messages", "why")}
    if form == "chat":
        t.method("data", "chat")
        if messages := facts.get("messages"):
            t.set("data.messages_column", messages)
        t.set("data.learn", learn)
        return
    if form == "text":
        t.method("data", "jsonl")
        t.set("data.columns.text", columns.get("text", "text"))
        return
    if form == "prompt-completion":
        t.method("data", "jsonl")
    elif form == "preference":
        t.method("data", "preference")
        if facts.get("chat"):
            t.set("data.chat", True)
        columns.pop("chat", None)
    elif form == "prompts":
        t.method("data", "prompts")
        if facts.get("chat"):
            t.set("data.chat", True)
        columns.pop("chat", None)
    elif form == "unpaired":
        t.method("data", "unpaired")
    else:
        t.method("data", "instruction")
    for name, column in columns.items():
        t.set(f"data.columns.{name}", column)
