"""LLaMA-Factory's rows: data sets by dataset_info.json, their columns, and how they are joined."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from llmft.api.errors import RecipeError
from llmft.importing.configuration import Key, as_bool
from llmft.importing.peer_translation import Translation
from llmft.importing.structure import arguments, forms
from llmft.importing.tables import registered_rows
from llmft.recipes.textfile import read_text
from llmft.recipes.tree import visible

INFO = "dataset_info.json"


def rows(t: Translation) -> None:
    """Write the data set, as dataset_info.json describes it."""
    key = t.key("dataset")
    folder = t.get("dataset_dir")
    if key is None:
        t.note("decide", "dataset", "no key names the rows", missing="no rows are named")
        return
    named = key.value if isinstance(key.value, list) else str(key.value).split(",")
    names = [str(name).strip() for name in named if str(name).strip()]
    if len(names) == 1:
        described_one(t, names[0], str(folder), key)
    elif names:
        forms.several(t, key, [partial(described_one, t, n, str(folder), key) for n in names])
        mixing(t)
    if t.get("stage") == "pt":
        return
    common_long = (
        "LLaMA-Factory cuts a longer row at the prompt and at the answer, so it is refused here"
    )
    t.set("train.on_long_row", "fail", None, common_long)


def mixing(t: Translation) -> None:
    """Write how several data sets are joined, as data/data_utils.py does: by `datasets`' own."""
    key, shares = t.key("mix_strategy"), t.key("interleave_probs")
    how = str(key.value) if key is not None else "concat"
    if how == "concat":
        if shares is not None:
            t.note("none", shares, "data sets that are joined have no shares", block="data")
        return
    stopping = _STOPPING.get(how)
    sources = t.draft.get("data.sources")
    given = shares.value if shares is not None else []
    weights = [
        arguments.number(w) for w in (given if isinstance(given, list) else str(given).split(","))
    ]
    if stopping is None or sources is None or (shares is not None and len(weights) != len(sources)):
        for one in filter(None, (key, shares)):
            t.note("decide", one, "how several data sets are joined", block="data")
        return
    if t.get("val_size"):
        what = "rows are held out after the data sets are joined; here of each, before that"
        t.note("decide", t.key("val_size"), what, block="evaluate")
    for source, weight in zip(sources, weights, strict=False):
        source["weight"] = weight
    t.set("data.mixing", "interleave", key)
    t.set("data.stopping_strategy", stopping, key)


_STOPPING = {"interleave_under": "first_exhausted", "interleave_over": "all_exhausted"}


def described_one(t: Translation, name: str, folder: str, key: Key) -> None:
    """Write one data set, and how many of its rows are taken."""
    described = _description(t, name, folder, key)
    limit = t.key("max_samples")
    if described is not None:
        one(t, name, described, key, folder)
        drawn = described.get("num_samples")
        if drawn and t.draft.get("data.method"):
            why = "drawn at random; where there are fewer rows, whole passes and the rest at random"
            if limit is not None and isinstance(drawn, int) and isinstance(limit.value, int):
                drawn, why = min(drawn, limit.value), f"{why}; max_samples takes the first of them"
            t.set("data.num_samples", drawn, key, f"num_samples: {why}")
        elif limit is not None:
            t.set("data.limit", limit.value, limit)


def _description(t: Translation, name: str, folder: str, key: Key) -> dict[str, Any] | None:
    """Return what dataset_info.json beside the file says of a data set; None with a finding."""
    here = Path(t.configuration.folder)
    places = [here / folder / INFO, here / INFO, here.parent / folder / INFO, Path(folder) / INFO]
    for place in places:
        if not place.is_file():
            continue
        try:
            found = json.loads(read_text(place)).get(name)
        except (RecipeError, ValueError, AttributeError, RecursionError):
            t.note("decide", key, f"{visible(str(place))[:200]} cannot be read", missing=INFO)
            return None
        if not isinstance(found, dict):
            t.note(
                "decide",
                key,
                f"{visible(str(place))[:200]} has no '{visible(name)[:60]}'",
                missing=INFO,
            )
            return None
        if any(not isinstance(found.get(part) or {}, dict) for part in ("columns", "tags")):
            what = f"{visible(str(place))[:200]}: columns and tags are no blocks"
            t.note("decide", key, what, missing=INFO)
            return None
        t.configuration.folder = str(place.parent)
        return found
    known = registered_rows("llamafactory").get(name)
    if known is not None and not folder.startswith(("REMOTE:", "ONLINE")):
        t.configuration.folder = folder
        where = f"the one that {t.origin} ships with"
        t.note("none", key, f"{INFO} is not beside the file: '{name}' is {where}", block="data")
        return known
    if "/" in name and name.count("/") == 1:
        return {"hf_hub_url": name}
    t.note(
        "decide",
        key,
        f"what '{visible(name)[:60]}' is stands in {INFO}, which is not"
        " beside the file: put it there",
        block="data",
        missing=f"{INFO} is not beside the file",
    )
    return None


def _is_judged(trainer: str, ranking: bool, columns: dict[str, Any]) -> bool:
    """Return whether rows hold what an alignment on judged answers reads."""
    if trainer == "kto":
        return bool(columns.get("kto_tag"))
    return ranking and trainer in ("dpo", "orpo", "reward")


_TAGS = {"role_tag": ("from", "role"), "content_tag": ("value", "content")}


def one(t: Translation, name: str, described: dict[str, Any], key: Key, folder: str) -> None:
    """Write one data set by its description."""
    columns = described.get("columns") or {}
    tags = described.get("tags") or {}
    known = {
        "file_name",
        "hf_hub_url",
        "ms_hub_url",
        "om_hub_url",
        "formatting",
        "columns",
        "tags",
        "ranking",
        "subset",
        "split",
        "num_samples",
        "folder",
    }
    if unknown := sorted(set(described) - known):
        t.note(
            "decide",
            key,
            f"{INFO}: {', '.join(map(visible, unknown))[:100]}",
            block="data",
            missing=INFO,
        )
    for part in ("images", "videos", "audios"):
        if part in columns:
            t.note("cannot", key, "rows with pictures, videos or sounds", missing="multimodal rows")
            return
    formatting = described.get("formatting", "alpaca")
    ranking = bool(described.get("ranking"))
    if t.get("stage") == "pt" and formatting == "alpaca" and not ranking:
        forms.rows_of(t, "text", {"text": _column(columns, "prompt", "instruction")}, learn="all")
        if t.get("template") == "llama3":
            what = "texts end with <|end_of_text|> there; here with the tokenizer's own end-of-text"
            t.note("decide", t.key("template"), what, block="data", missing="template of stage pt")
    elif formatting == "sharegpt" and not ranking and t.trainer == "sft":
        chat(t, columns, tags, key)
    elif formatting == "alpaca" and not ranking and "kto_tag" not in columns and t.trainer == "sft":
        instructions(t, columns, key)
    elif formatting in ("alpaca", "sharegpt") and _is_judged(t.trainer, ranking, columns):
        judged(t, formatting, columns, tags, key)
    else:
        form = "kto" if "kto_tag" in columns else "pairs" if ranking else "instruction"
        t.note(
            "cannot",
            key,
            f"rows of the form {formatting} ({form})",
            missing=f"rows {formatting}, {form}",
        )
        return
    if not t.draft.get("data.method"):
        return
    url, file = described.get("hf_hub_url"), described.get("file_name")
    if url:
        t.set("data.path", str(url), key)
        if described.get("subset"):
            t.set("data.subset", str(described["subset"]), None, INFO)
        if described.get("split"):
            forms.split(t, str(described["split"]), None)
    elif file:
        t.set("data.path", str(Path(t.configuration.folder) / str(file)), key)
    else:
        t.note(
            "cannot", key, "rows that are neither a file nor of the hub", missing="rows by a script"
        )


_OF_INSTRUCTIONS = {"prompt": "instruction", "completion": "output"}
_COLUMNS = (
    ("prompt", "prompt", "instruction"),
    ("input", "query", "input"),
    ("completion", "response", "output"),
    ("system", "system", None),
    ("history", "history", None),
)


def _column(columns: dict[str, Any], name: str, usual: str | None) -> str | None:
    """Return a column's name; the usual one where no columns are named at all.

    LLaMA-Factory 0.9.5, data/parser.py: of columns that are named, one that is left out is none.
    """
    found = columns.get(name) if columns else usual
    return None if found is None else str(found)


def _turns_of_rows(t: Translation, tags: dict[str, Any], key: Key) -> bool:
    """Return whether messages have keys that are read here, and say so where not."""
    pair = tuple(str(tags.get(tag, usual[0])) for tag, usual in _TAGS.items())
    if pair in (("from", "value"), ("role", "content")):
        return True
    what = f"messages with the keys {visible(', '.join(pair))[:60]}"
    t.note("cannot", key, what, missing="keys of messages")
    return False


def judged(
    t: Translation, formatting: str, columns: dict[str, Any], tags: dict[str, Any], key: Key
) -> None:
    """Write pairs of answers, or single ones with a label, with what stands before them.

    LLaMA-Factory 0.9.5, data/converter.py and data/processor/pairwise.py and feedback.py: all of an
    answer's turn is learnt, its spaces too.
    """
    is_talk, pairs = formatting == "sharegpt", t.trainer != "kto"
    if is_talk and not _turns_of_rows(t, tags, key):
        return
    extra = [name for name in ("query", "history", "system", "tools") if columns.get(name)]
    if not is_talk and not columns:
        extra = ["query"]  # its usual name, 'input'
    if extra or (is_talk and not pairs):
        what = f"answers that are judged, with {', '.join(extra) or 'messages and a label'}"
        t.note("cannot", key, what, missing=f"rows {formatting}, judged with {', '.join(extra)}")
        return
    t.method("data", "preference" if pairs else "unpaired")
    asked, usual = ("messages", "conversations") if is_talk else ("prompt", "instruction")
    names = {"prompt": _column(columns, asked, usual)}
    if pairs:
        names |= {name: _column(columns, name, None) for name in ("chosen", "rejected")}
    else:
        names |= {"completion": _column(columns, "response", "output")}
        names |= {"label": _column(columns, "kto_tag", None)}
    for name, column in names.items():
        if column is not None:
            t.set(f"data.columns.{name}", column, None, said=f"columns.{name}")
    if not is_talk:
        t.set("data.chat", True, key)
        t.set("data.strip_answers", False, None, "LLaMA-Factory keeps an answer's spaces")


def instructions(t: Translation, columns: dict[str, Any], key: Key) -> None:
    """Write instruction rows: the input on a line after the instruction, by the chat template."""
    prompt, history = as_bool(t.get("train_on_prompt")), as_bool(t.get("mask_history"))
    if prompt is True:
        t.note("cannot", t.key("train_on_prompt"), "the loss on prompts", missing="train_on_prompt")
        return
    plain = not columns.get("system") and not columns.get("history")
    t.method("data", "instruction" if plain else "jsonl")
    named = {theirs: _column(columns, theirs, usual) for _, theirs, usual in _COLUMNS}
    for ours, theirs, _ in _COLUMNS:
        if (column := named[theirs]) is not None:
            ours = _OF_INSTRUCTIONS.get(ours, ours) if plain else ours
            t.set(f"data.columns.{ours}", column, None, said=f"columns.{theirs}")
    if plain and not named["query"]:
        t.set("data.with_input", "{instruction}", None, "no column of an input is named")
    elif plain:
        t.set("data.with_input", "{instruction}\n{input}", None, "as LLaMA-Factory joins them")
    else:
        t.set("data.chat", True, key)
    if columns.get("history") and history is not True:
        t.note(
            "cannot", key, "the loss on the answers of earlier turns", missing="history is learnt"
        )
    if columns.get("tools"):
        t.note("cannot", key, "tool calls in LLaMA-Factory's own form", missing="tool calls")
    if not plain:
        what = "an answer's spaces at its start and end are left out here"
        t.note("none", None, what, block="data")


def chat(t: Translation, columns: dict[str, Any], tags: dict[str, Any], key: Key) -> None:
    """Write rows of messages in ShareGPT's form."""
    if not _turns_of_rows(t, tags, key):
        return
    prompt, history = as_bool(t.get("train_on_prompt")), as_bool(t.get("mask_history"))
    forms.rows_of(
        t, "chat", {"messages": str(columns.get("messages", "conversations"))}, learn="all"
    )
    if history is True:
        t.set("data.learn", "last", t.key("mask_history"))
    if prompt is True:
        t.note(
            "decide",
            t.key("train_on_prompt"),
            "which tokens between the turns are learnt",
            missing="train_on_prompt",
        )
    if columns.get("tools"):
        t.note("cannot", key, "tool calls in LLaMA-Factory's own form", missing="tool calls")
    if columns.get("system"):
        t.set("data.system_column", str(columns["system"]), None, INFO)
