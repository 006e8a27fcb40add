"""Unsloth's command line: LoRA on every layer's matrices, rows of Alpaca as one text."""

from __future__ import annotations

from llmft.importing.peer_translation import Translation
from llmft.importing.structure import arguments, forms, weights
from llmft.recipes.tree import visible

_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_TEXTS = (".txt", ".md", ".json", ".jsonl")
# Alpaca's prompt as the script indents it; an empty input leaves its heading.
_TEXT = (
    forms.ALPACA_OPENING.format(paired=forms.ALPACA_PAIRED)
    + "\n\n    ### Instruction:\n    {instruction}\n\n    ### Input:\n    {input?}"
    "\n\n    ### Response:\n    {output}"
)


def structure(t: Translation) -> None:
    """Translate what Unsloth's flags say."""
    t.trainer = "sft"
    arguments.value(t, "model.path", "model_name")
    adapter(t)
    t.method("alignment", "sft")
    rows(t)
    precision(t)
    again, key = t.get("use_gradient_checkpointing"), t.key("use_gradient_checkpointing")
    why = "" if key else f"the default of {t.origin}"
    t.set("train.gradient_checkpointing", again in (True, "unsloth"), key, why)
    t.set("train.on_long_row", "truncate", None, "TRL cuts a longer row at its end")
    t.set("train.save_strategy", "steps", None, f"the default of {t.origin}")
    packing = t.key("packing")
    if packing is not None and packing.value is True:
        t.set("train.packing", True, packing)
        t.note("speed", packing, "which rows are packed together differs", block="train")
    arguments.trackers(t)


def adapter(t: Translation) -> None:
    """Write LoRA, QLoRA or DoRA."""
    four, dora = t.key("load_in_4bit"), t.key("use_dora")
    is_four = four is not None and four.value is True
    is_dora = dora is not None and dora.value is True
    if is_four and is_dora:
        t.note("cannot", dora, "DoRA on a base of 4 bits")
    t.method("adapter", "dora" if is_dora else "qlora" if is_four else "lora",
             dora if is_dora else four if is_four else None)  # fmt: skip
    t.set("adapter.target_modules", _LAYERS, None, f"the default of {t.origin}")
    if is_four:
        t.note(
            "decide",
            four,
            "Unsloth may load a copy of its own, in which some layers are not in 4 bits",
            block="adapter",
            missing="Unsloth's own copies in 4 bits",
        )


def rows(t: Translation) -> None:
    """Write Alpaca's rows as one text, of which every token is learnt."""
    path, key = str(t.get("dataset")), t.key("dataset")
    if path.endswith(_TEXTS):
        t.note(
            "cannot",
            key,
            f"'{visible(path)[:60]}' is read as one text and cut into pieces that overlap",
            block="data",
            missing="a text cut into pieces",
        )
        return
    forms.rows_of(t, "text", {"text": _TEXT}, learn="all")
    forms.source(t, path, key)


def precision(t: Translation) -> None:
    """Write the type of the weights: bfloat16, unless another one is named."""
    key = t.key("dtype")
    name = str(key.value).lower() if key is not None else "none"
    if name in ("none", "auto", ""):
        t.set("model.dtype", "bfloat16", key, "bfloat16, as on every GPU that has it")
    else:
        weights.dtype(t, name, key)
    t.set("train.bf16", True, None, "as on every GPU that has it")
