"""Axolotl's rows: their form, chat templates, lengths and packing."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from llmft.importing.configuration import Key, as_bool
from llmft.importing.peer_translation import Translation
from llmft.importing.structure import forms
from llmft.importing.tables import ends_of, known_templates
from llmft.recipes.tree import visible

_OWN_ATTENTION = re.compile(r"flash|flex|xformers|fa[23]|sage")

_ROLES = ({"role": "role", "content": "content"}, {"role": "from", "content": "value"})

_USUAL_ROLES = {
    "user": {"human", "user", "prompter"},
    "assistant": {"gpt", "assistant", "bot", "model", "chatgpt", "ai"},
    "system": {"system"},
    "tool": {"tool", "observation", "function", "ipython", "tool_response", "function_response"},
}
"""The words for roles that `method: chat` takes for the same ones."""


def rows(t: Translation) -> None:
    """Write the one data set that a stage has here, and what is learnt of it."""
    listed = t.configuration.items("datasets")
    for block in t.configuration.items("pretraining_dataset"):
        for inner in t.configuration.under(block):
            t.taken.add(f"{block}.{inner}")
        t.note(
            "cannot",
            t.configuration.keys.get(f"{block}.path"),
            "documents cut and joined, streamed",
            missing="continued pretraining on a stream",
        )
    if t.configuration.items("pretraining_dataset") and not listed:
        return
    if not listed:
        t.note("decide", "datasets", "no key names the rows", missing="no rows are named")
        return
    for block in listed:
        for inner in t.configuration.under(block):
            t.taken.add(f"{block}.{inner}")
    streamed = t.key("streaming")
    if streamed is not None and streamed.value is True:
        stream(t, streamed, len(listed))
    twice = t.key("dataset_exact_deduplication")
    if len(listed) == 1:
        one(t, listed[0])
        if twice is not None and twice.value is True:
            t.set(
                "data.drop", {"duplicates": True}, twice, "compared as rows; there as their tokens"
            )
        return
    if twice is not None and twice.value is True:
        what = "leaving out rows that come twice in several data sets"
        t.note("cannot", twice, what, missing="dataset_exact_deduplication of several data sets")
    templates = {str(t.configuration.get(f"{block}.chat_template")) for block in listed}
    if len(templates) > 1:
        t.note(
            "cannot",
            t.configuration.keys.get(f"{listed[0]}.chat_template"),
            "chat templates that differ between data sets",
            missing="a chat template for each data set",
        )
    key = t.configuration.keys.get(f"{listed[0]}.path")
    forms.several(t, key, [partial(one, t, block) for block in listed])


def stream(t: Translation, key: Key, sources: int) -> None:
    """Write that the rows are read while it trains.

    Axolotl 0.18, utils/data/streaming.py: shuffled in a buffer, and packed buffer by buffer.
    """
    size, packed = t.key("streaming_multipack_buffer_size"), t.configuration.get("sample_packing")
    if sources > 1 or packed is not True or as_bool(t.get("shuffle_merged_datasets")) is False:
        t.note("cannot", key, "rows streamed otherwise than packed", missing="streamed rows")
        return
    t.method("data", "jsonl")  # what has the setting; the rows' own method follows
    t.set("data.streaming", True, key)
    why = "" if size is not None else f"the default of {t.origin}"
    t.set("data.buffer_size", t.get("streaming_multipack_buffer_size"), size, why)


_PLAIN = ("path", "type", "split", "name", "revision", "ds_type", "data_files")

_CHAT = (
    "field_messages",
    "message_property_mappings.role",
    "message_property_mappings.content",
    "message_field_role",
    "message_field_content",
    "roles_to_train",
    "train_on_eos",
    "chat_template",
    "field_tools",
    "drop_system_message",
)


def one(t: Translation, block: str) -> None:
    """Write one data set: its place, its form and its columns."""
    inner = t.configuration.under(block)
    path = inner.get("path")
    kind = inner.get("type")
    name = str(kind.value) if kind else ""
    base, _, variant = name.partition(".")
    if path is None:
        t.note("decide", f"{block}.path", "no key names the rows", missing="no rows are named")
        return
    read = set(_PLAIN)
    if name == "chat_template" or (
        base == "chat_template" and variant == "default" and t.trainer == "sft"
    ):
        if t.trainer != "sft":
            t.note(
                "cannot", kind, f"rows '{visible(name)}' for {t.trainer}", missing=f"rows {name}"
            )
            return
        read |= set(_CHAT) | {n for n in inner if n.startswith("roles.")}
        if not conversations(t, block, inner):
            return
    elif name == "alpaca" and t.trainer == "sft":
        if not instructions(t, kind):
            return
    elif name == "completion" and t.trainer == "sft":
        read |= {"field"}
        field = inner.get("field")
        forms.rows_of(t, "text", {"text": str(field.value)} if field else {}, learn="all")
        t.set(
            "train.on_long_row",
            "fail",
            None,
            "Axolotl cuts a longer text into several rows, so it is refused here",
        )
    elif t.trainer in ("dpo", "orpo", "cpo", "reward", "kto", "grpo") or name:
        missing = (
            f"rows {visible(name)[:50]}"
            if "." not in name
            or base in ("chat_template", "alpaca", "sharegpt", "chatml", "llama3")
            else "rows read by Python code"
        )
        t.note(
            "cannot",
            kind or path,
            f"rows of Axolotl's form '{visible(name)[:60]}'",
            missing=missing,
        )
        return
    else:
        t.note(
            "cannot",
            path,
            "rows of a form of their own (type as a block)",
            missing="rows of a form of their own",
        )
        return
    for unread in [k for n, k in inner.items() if n not in read and k.value not in (None, False)]:
        t.note(
            "decide", unread, "it is not taken over here", block="data", missing=unread.rule_name
        )
    files = inner.get("data_files")
    where = str(path.value)
    if files is not None and files.value:
        named = files.value if isinstance(files.value, list) else [files.value]
        if len(named) != 1:
            t.note("cannot", files, "several files of one data set", missing="several files")
        elif where in ("json", "csv", "parquet", "text"):
            where = str(named[0])
        else:
            t.note(
                "cannot",
                files,
                "one file of a data set of the hub",
                missing="a file of a hub data set",
            )
    if where in ("json", "csv", "parquet", "text") and files is None:
        t.note("decide", path, "data_files names no file", block="data")
    forms.source(t, where, path, inner.get("name"))
    revision = inner.get("revision")
    if revision is not None:
        t.set("data.revision", str(revision.value), revision)
    kind_of_file = inner.get("ds_type")
    if kind_of_file is not None:
        t.note("none", kind_of_file, "the file's ending says it here", block="data")
    part = inner.get("split")
    if part is not None:
        forms.split(t, str(part.value), part)


# SentencePiece tokenizers that may put a space before the first word of a text.
_SPACED = re.compile(
    r"(?:^|/)llama-(?:\d+b|2-)|llama2|tinyllama|open_llama|codellama|mistral|mixtral|vicuna|phi-?3"
    r"|(?:^|[/-])yi-|zephyr|solar",
    re.IGNORECASE,
)


def instructions(t: Translation, kind: Key | None) -> bool:
    """Write Alpaca's rows with its two prompts; return whether they can be read here."""
    if as_bool(t.get("train_on_inputs")) is True:
        t.note("cannot", t.key("train_on_inputs"), "the loss on prompts", missing="train_on_inputs")
        return False
    t.method("data", "jsonl")
    for column, theirs in (("prompt", "instruction"), ("input", "input"), ("completion", "output")):
        t.set(f"data.columns.{column}", theirs, None, said="datasets[].type: alpaca")
    t.set("data.prompt_style", "alpaca", kind)
    # AlpacaPromptTokenizingStrategy encodes each by itself, and takes the first token off the
    # answer; a conversation is encoded in one go.
    blocks = t.configuration.items("datasets")
    if not any("chat" in str(t.configuration.get(f"{block}.type")) for block in blocks):
        t.set("model.tokenize_apart", True, kind, "Axolotl encodes prompt and answer apart")
    elif _SPACED.search(str(t.draft.get("model.path") or "")):
        why = (
            "Axolotl encodes an answer apart here, and not in conversations, so that this tokenizer"
        )
        t.note("decide", kind, f"{why} puts a space before it", missing="a space before the answer")
    return True


def conversations(t: Translation, block: str, inner: dict[str, Key]) -> bool:
    """Write rows of messages; return whether they can be read here."""
    mapping = {"role": "role", "content": "content"}
    for role, old in (("role", "message_field_role"), ("content", "message_field_content")):
        found = inner.get(f"message_property_mappings.{role}") or inner.get(old)
        if found is not None:
            mapping[role] = str(found.value)
    if mapping not in _ROLES:
        t.note(
            "cannot",
            inner.get("message_property_mappings.role") or block,
            f"messages whose role is '{visible(mapping['role'])[:30]}' and whose text is"
            f" '{visible(mapping['content'])[:30]}'",
            missing="keys of messages",
        )
        return False
    messages = inner.get("field_messages")
    learnt = inner.get("roles_to_train")
    if as_bool(t.get("train_on_inputs")) is True:
        learn: Any = "every_token"
        t.note(
            "decide",
            t.key("train_on_inputs"),
            "which tokens between the turns are learnt",
            missing="train_on_inputs with conversations",
        )
    else:
        names = learnt.value if learnt is not None else ["assistant"]
        names = names if isinstance(names, list) else [names]
        ours = [{"gpt": "assistant", "human": "user"}.get(str(n), str(n)) for n in names]
        learn = "all" if ours == ["assistant"] else ours
        if not ours:
            t.note(
                "cannot",
                learnt,
                "only the last turn's end is found by comparing texts",
                missing="roles_to_train: []",
            )
            return False
    forms.rows_of(t, "chat", {"messages": str(messages.value)} if messages else {}, learn="all")
    if learn != "all":
        t.set("data.learn", learn, learnt or t.key("train_on_inputs"))
    roles: dict[str, set[str]] = {}
    for name, key in inner.items():
        if name.startswith("roles."):
            listed = key.value if isinstance(key.value, list) else [key.value]
            roles[name.removeprefix("roles.")] = {str(one) for one in listed}
    own = [role for role, names in roles.items() if not names <= _USUAL_ROLES.get(role, set())]
    if own:
        t.note(
            "cannot",
            inner[f"roles.{own[0]}"],
            "names of roles of their own",
            missing="names of roles",
        )
        return False
    if (eos := inner.get("train_on_eos")) is not None and eos.value != "turn":
        t.note("cannot", eos, "which ends of turns are learnt", missing="train_on_eos")
    if (dropped := inner.get("drop_system_message")) is not None and dropped.value is True:
        t.set("data.drop_system", True, dropped)
    if (tools := inner.get("field_tools")) is not None:
        t.set("data.tools_column", str(tools.value), tools)
    return True


def length(t: Translation) -> None:
    """Write what happens to a row that is too long: Axolotl leaves it out."""
    key = t.key("excess_length_strategy")
    said = str(key.value) if key else "drop"
    if t.draft.get("train.on_long_row"):
        return
    rule = {"drop": "drop", "truncate": "truncate", "raise": "fail"}.get(said)
    if rule is None:
        t.note("decide", key, "what happens to a longer row", missing="excess_length_strategy")
        return
    if t.trainer != "sft" and rule == "truncate":
        rule = "fail"
    t.set("train.on_long_row", rule, key, "" if key else f"the default of {t.origin}")
    if rule == "drop":
        t.set("train.max_dropped", 1.0, None, "Axolotl drops any number of them")


def packing(t: Translation, attention: str) -> None:
    """Write packing: whole rows share a row of the batch."""
    key = t.key("sample_packing")
    if key is None or key.value is not True:
        return
    kinds = [
        attention,
        *(
            n
            for n in ("flash_attention", "flex_attention", "xformers_attention")
            if t.configuration.get(n) is True
        ),
    ]
    if not any(_OWN_ATTENTION.search(kind) for kind in kinds):
        t.note(
            "decide",
            key,
            "with this attention Axolotl's packed rows see each other; here they never do",
            block="train",
            missing="packed rows that see each other",
        )
    t.set("train.packing", True, key)
    t.note("speed", key, "which rows are packed together differs", block="train")


def template(t: Translation) -> None:
    """Write the chat template, which matters where rows are conversations."""
    chat = forms.are_chats(t)
    key, jinja = t.key("chat_template"), t.key("chat_template_jinja")
    system, ends = t.key("default_system_message"), t.key("eot_tokens")
    kwargs = t.configuration.under("chat_template_kwargs")
    for name in kwargs:
        t.taken.add(f"chat_template_kwargs.{name}")
    if not chat:
        for unused in (key, jinja, ends):
            if unused is not None:
                t.note("none", unused, "the rows are no conversations")
        if system is not None:
            t.note(
                "decide", system, "a system text for the prompts", missing="default_system_message"
            )
        return
    inner = t.configuration.keys.get("datasets[0].chat_template")
    name = str(key.value) if key is not None else "tokenizer_default"
    if inner is not None and inner.value is not None:
        key, name = inner, str(inner.value)
    text = None
    if jinja is not None and name in ("jinja", "tokenizer_default"):
        t.set("model.chat_template", jinja.value, jinja)
        if key is not None:
            t.note("none", key, "the template is that of chat_template_jinja", block="model")
        name = "jinja"
    elif name != "tokenizer_default":
        text = known_templates().get(name)
        if text is None or t.draft.get("data.tools_column"):
            t.note(
                "decide",
                key or "chat_template",
                "a chat template of Axolotl's own; --anyway takes the model's",
                block="model",
                missing="a chat template of Axolotl's own",
            )
            name = "unknown"
        else:
            t.set("model.chat_template", text.text, key, f"Axolotl's '{name}', for turns of text")
    if kwargs:
        t.set(
            "model.chat_template_kwargs",
            {n: k.value for n, k in kwargs.items()},
            next(iter(kwargs.values())),
        )
    if system is not None and t.draft.get("data.sources"):
        t.note("decide", system, "a system text", missing="a system text for several data sets")
    elif system is not None:
        t.set("data.system", system.value, system)
    end_of_answers(t, name, text.end if text is not None else "", ends)


def end_of_answers(t: Translation, template: str, end: str, listed: Key | None) -> None:
    """Let a turn's text be learnt, and its end where Axolotl learns it.

    end: the token that ends an answer, where the template is written out here.
    """
    own = t.key("special_tokens.eos_token")
    known = ends_of(str(t.draft.get("model.path") or ""))
    if not end and known is not None and template == "tokenizer_default":
        end = known.end
    other = own is not None and own.value != (known.eos if known else "") and listed is None
    if own is not None and other and (not end or (known is not None and end == known.eos)):
        what = f"another end-of-text, '{visible(str(own.value))[:40]}', in place of its own"
        t.note("decide", own, what, missing="which token ends an answer")
    named = [] if listed is None else listed.value
    named = [str(one) for one in (named if isinstance(named, list) else [named])]
    if own is not None:
        named.append(str(own.value))
    # Axolotl 0.18, ChatTemplateStrategy: learnt is a turn's text, and the first of eot_tokens and
    # of the end-of-text within three tokens after it; the whole conversation is one row.
    t.set("model.learn_template", "eos", None, "Axolotl learns a turn's text, and the end-of-text")
    if named:
        t.set("model.stop", list(dict.fromkeys(named)), listed or own)
    for source in t.draft.get("data.sources") or []:
        if source.get("method") == "chat":
            source["turns"] = "whole"
    if t.draft.get("data.method") == "chat":
        t.set("data.turns", "whole", None, "Axolotl makes one row of a conversation")


def tokens(t: Translation) -> None:
    """Tell of tokens that begin and end texts, which change what is trained if they are others."""
    for name in ("bos_token", "eos_token"):
        key = t.key(f"special_tokens.{name}")
        if key is None or key.value is None:
            continue
        path = str(t.draft.get("model.path") or "").lower()
        usual = {"bos_token": "<s>", "eos_token": "</s>"}[name]
        if name == "eos_token" and forms.are_chats(t):
            continue  # it ends answers of the template: said there
        if key.value == usual and any(
            word in path
            for word in ("llama-2", "mistral", "mixtral", "tinyllama", "open_llama", "codellama")
        ):
            t.note("none", key, "the tokenizer's own", block="model")
        else:
            t.note(
                "decide",
                key,
                "another token begins or ends texts; here the tokenizer's own do",
                block="model",
                missing=f"special_tokens.{name}",
            )
