"""TRL's rows: where they are, their form, and what is learnt of them."""

from __future__ import annotations

from functools import partial
from typing import Any

from llmft.importing.configuration import Key
from llmft.importing.peer_translation import Translation
from llmft.importing.structure import forms, online
from llmft.importing.tables import ends_of


def rows(t: Translation) -> None:
    """Write where the rows are, their form, and what is learnt of them."""
    listed = t.configuration.items("datasets")
    if len(listed) > 1:
        key = t.key(f"{listed[0]}.path")
        forms.several(t, key, [partial(one, t, *_named(t, block)) for block in listed])
    elif listed:
        one(t, *_named(t, listed[0]))
    else:
        one(t, *(t.key(n) for n in ("dataset_name", "dataset_config", "dataset_train_split")))


def _named(t: Translation, block: str) -> tuple[Key | None, ...]:
    for inner in t.configuration.under(block):
        if inner not in ("path", "name", "split"):
            t.note("decide", t.configuration.keys[f"{block}.{inner}"], "it is not taken over here")
    return tuple(t.key(f"{block}.{name}") for name in ("path", "name", "split"))


def one(t: Translation, path_key: Key | None, subset: Key | None, split_key: Key | None) -> None:
    """Write one data set."""
    if path_key is None:
        t.note("decide", "dataset_name", "no key names the rows", missing="no rows are named")
        return
    path = str(path_key.value)
    form, facts = forms.form_of(t, path, path_key, t.trainer)
    learn_key = t.key("assistant_only_loss")
    learn = "all" if learn_key is not None and learn_key.value is True else "every_token"
    if t.trainer == "gkd":
        learn = "last"  # DataCollatorForChatML
    if not form:
        t.key("dataset_text_field"), t.key("completion_only_loss"), t.key("dataset_test_split")
        return
    text = t.key("dataset_text_field")
    if form == "text":
        facts["text"] = text.value if text else facts.get("text", "text")
    elif text is not None:
        t.note("none", text, "the rows are no plain text", block="data")
    forms.rows_of(t, form, facts, learn=learn)
    rewards: Any = t.draft.get("alignment.rewards") or []
    if form == "prompts" and any(block["method"] == "math_verify" for block in rewards):
        t.set("data.columns.answers", "solution", t.key("reward_funcs"), "accuracy_reward's column")
    forms.source(t, path, path_key, subset)
    forms.split(t, str(split_key.value) if split_key else "train", split_key)
    only = t.key("completion_only_loss")
    if only is not None and (only.value is not True or form != "prompt-completion"):
        t.note(
            "cannot",
            only,
            "the loss on prompts of prompt-completion rows",
            block="data",
            missing="completion_only_loss",
        )
    if learn_key is not None and form != "chat":
        t.note("decide", learn_key, "it acts on conversations only", block="data")


def end_of_text(t: Translation) -> None:
    """Write the token that is to be the end-of-text: it is put after texts, and after no turn.

    TRL 0.19 and 1.16, SFTTrainer: it is the tokenizer's then; conversations end as the chat
    template writes them, which reads it where it has the word eos_token.
    """
    key = t.key("eos_token")
    if key is None:
        return
    template = t.configuration.get("chat_template")
    plain = isinstance(template, str) and "eos_token" not in template
    if t.trainer == "sft" and forms.only_chats(t) and plain:
        t.set("model.stop", [str(key.value)], key, "no text is put after a turn")
        return
    t.note(
        "decide",
        key,
        "another token would end the answers; here the model's own does, or the chat template's",
        block="model",
        missing="eos_token",
    )


def learnt_ends(t: Translation) -> None:
    """Write that all which the template puts after an answer is learnt, as a line break.

    TRL 0.19 and 1.16: an answer is what the whole has more than the prompt; a conversation whose
    every token or whose marked answers are learnt says so itself. ORPO and CPO (tokenize_row) put
    end-of-text after it unless it ends with it, and beginning-of-text before a prompt likewise. The
    DPO of 0.19 puts end-of-text after it in any case, and tokenises prompt and answer apart.
    """
    if t.trainer in online.METHODS or not t.draft.get("data.method"):
        return
    if t.trainer != "gkd" and forms.are_chats(t):
        return
    if t.trainer == "sft" and t.draft.get("data.columns.text") is not None:
        return
    why = f"{t.table.title} learns what the template writes after an answer too"
    t.set("model.learn_template", "turn", None, why)
    is_handbook = t.table.peer == "alignment-handbook"
    if is_handbook and t.trainer == "dpo":
        why = f"{t.table.title}'s DPO puts end-of-text after what the template writes, in any case"
        t.set("model.append_eos", "always", None, why)
        why = f"{t.table.title}'s DPO tokenises prompt and answer apart"
        t.set("model.tokenize_apart", True, None, why)
    elif t.trainer in ("orpo", "cpo"):
        name = t.trainer.upper()
        why = f"{t.table.title}'s {name} puts end-of-text after it, unless it ends with that"
        t.set("model.append_eos", "once", None, why)
        known = ends_of(str(t.draft.get("model.path") or ""))
        if known is None or not known.begins:
            t.note(
                "decide",
                None,
                f"{t.table.title}'s {name} puts beginning-of-text before a prompt that the template"
                " does not begin with it; here the template alone writes it",
                block="model",
                missing="beginning-of-text before the template's own",
            )
