"""The alignment handbook: TRL's keys, and mixtures of data sets."""

from __future__ import annotations

from functools import partial

from llmft.importing.peer_translation import Translation
from llmft.importing.structure import arguments, forms, trl, weights
from llmft.recipes.tree import visible

_COLUMNS = {("messages",): "chat", ("chosen", "rejected"): "preference"}


def structure(t: Translation) -> None:
    """Translate what several keys of the handbook say together."""
    if t.trainer not in ("sft", "dpo", "orpo"):
        t.stop(
            None,
            f"the handbook has no script '{visible(t.trainer)[:40]}'",
            f"trainer {visible(t.trainer)[:40]}",
        )
        return
    arguments.value(t, "model.path", "model_name_or_path")
    trl.adapter(t)
    t.method("alignment", t.trainer)
    trl.loss(t)
    held = rows(t)
    trl.data.end_of_text(t)
    trl.data.learnt_ends(t)
    arguments.training_arguments(t)
    arguments.evaluation(
        t,
        holdout=held,
        split=None if held else str(t.get("dataset_test_split")),
        key=t.key("dataset_mixture.test_split_size"),
    )
    trl.precision(t)
    weights.attention(t)
    trl.length(t)
    if t.trainer == "sft":
        what = (
            "transformers 4.53 divides a step's loss by all tokens of its rows, the first ones too,"
            " which are never predicted"
        )
        t.note("logging", None, what, block="train")
    template = t.key("chat_template")
    if template is not None:
        t.set("model.chat_template", str(template.value), template)


def rows(t: Translation) -> float | None:
    """Write the rows of a mixture; return the share that is held out, where it is one."""
    mixer = list(t.configuration.under("dataset_mixer"))
    if mixer:
        for name in mixer:
            t.taken.add(f"dataset_mixer.{name}")
        t.key("dataset_splits")
        t.note(
            "cannot",
            t.configuration.keys[f"dataset_mixer.{mixer[0]}"],
            "dataset_mixer, which this version of the handbook does not read",
            missing="dataset_mixer",
        )
        return None
    listed = t.configuration.items("dataset_mixture.datasets")
    if not listed:
        trl.data.rows(t)
        return None
    size = t.key("dataset_mixture.test_split_size")
    for block in listed:
        for inner in t.configuration.under(block):
            t.taken.add(f"{block}.{inner}")
    held = arguments.held_out(size.value) if size is not None else 0
    if len(listed) > 1:
        key = t.configuration.keys.get(f"{listed[0]}.id")
        forms.several(t, key, [partial(one, t, block) for block in listed])
    else:
        one(t, listed[0])
    return held or None


def one(t: Translation, block: str) -> None:
    """Write one data set of a mixture."""
    only = t.configuration.under(block)
    path, columns = only.get("id"), only.get("columns")
    if path is None:
        t.note("decide", f"{block}.id", "no key names the rows", missing="no rows are named")
        return
    named = tuple(columns.value) if columns is not None and isinstance(columns.value, list) else ()
    form = _COLUMNS.get(named, "")
    facts: dict[str, object] = {}
    if not form:
        form, facts = forms.form_of(t, str(path.value), path, t.trainer)
    if not form:
        return
    forms.rows_of(t, form, facts, learn="every_token")
    forms.source(t, str(path.value), path, only.get("config"))
    part = only.get("split")
    forms.split(t, str(part.value) if part is not None else "train", part)
    weight = only.get("weight")
    if weight is not None and weight.value not in (1, 1.0):
        t.note(
            "cannot", weight, "a share of the rows, drawn at random", missing="a share of the rows"
        )
