"""Rows: where they are, which split, of which form, by what columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmft.api.splits import split_parts
from llmft.importing.configuration import Key
from llmft.importing.peer_translation import Translation
from llmft.importing.tables import known_rows
from llmft.recipes.tree import visible

_SPLIT = re.compile(r"([\w.-]+)(?:\[:(\d+)(%?)\])?")


def split(t: Translation, name: str, key: Key | None) -> None:
    """Write the split, or the part of it: train[:20%]; a number of first rows is a limit."""
    found = _SPLIT.fullmatch(name)
    if found is None or found[3]:
        try:
            split_parts(name)
        except ValueError as error:
            t.note("decide", key or "split", str(error), block="data", missing="split unknown")
            return
        t.set("data.split", name, key)
        return
    if found[1] != "train" or key is not None:
        t.set("data.split", found[1], key)
    if found[2]:
        t.set("data.limit", int(found[2]), key, "the first rows of the split")


def several(t: Translation, key: Key | None, translate: Sequence[Callable[[], None]]) -> None:
    """Write several data sets, one after the other, as peers join them before they shuffle.

    translate: each writes one data set as if it were the only one.
    """
    sources: list[dict[str, Any]] = []
    for one in translate:
        one()
        own = [entry for entry in t.draft.entries if entry.is_set and _is_of_data(entry.home)]
        t.draft.entries = [entry for entry in t.draft.entries if entry not in own]
        block: dict[str, Any] = {}
        for entry in sorted(own, key=lambda entry: entry.home != "data.method"):
            outer, _, inner = entry.home.removeprefix("data.").rpartition(".")
            (block.setdefault(outer, {}) if outer else block)[inner] = entry.value
        if block:
            sources.append(block)
    if len(sources) == len(translate):
        t.method("data", "mix", key)
        t.set("data.sources", sources, key)


def _is_of_data(home: str) -> bool:
    return home.startswith("data.")


def are_chats(t: Translation) -> bool:
    """Return whether the rows are conversations, those of any of several data sets."""
    sources = t.draft.get("data.sources") or [{"method": t.draft.get("data.method")}]
    return any(source.get("method") == "chat" for source in sources)


def only_chats(t: Translation) -> bool:
    """Return whether the rows are conversations, those of each of several data sets."""
    sources = t.draft.get("data.sources") or [{"method": t.draft.get("data.method")}]
    return all(source.get("method") == "chat" for source in sources)


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
    "gkd": ("chat",),
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
        if facts.get("common_start"):
            # TRL 1.16, extract_prompt: all that both have in common, but for a space at its end.
            t.set("data.common_start", True)
            t.note(
                "decide",
                None,
                "where the answers of a pair begin with the same letters, TRL's prompt ends inside"
                " of a word; here it ends before that word",
                block="data",
                missing="a prompt that ends inside of a word",
            )
        columns.pop("chat", None)
        columns.pop("common_start", None)
    elif form == "prompts":
        t.method("data", "prompts")
        if facts.get("chat"):
            t.set("data.chat", True)
        columns.pop("chat", None)
    elif form == "unpaired":
        t.method("data", "unpaired")
        if facts.get("chat"):
            t.set("data.chat", True)
        columns.pop("chat", None)
    else:
        t.method("data", "instruction")
    for name, column in columns.items():
        t.set(f"data.columns.{name}", column)
