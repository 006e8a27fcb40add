"""ms-swift: supervised and DPO training of rows in local files; its registry of rows is its own."""

from __future__ import annotations

from llmft.importing.configuration import Key
from llmft.importing.peer_translation import Translation
from llmft.importing.structure import arguments, forms, weights
from llmft.recipes.tree import visible

_FILES = (".jsonl", ".json", ".csv", ".parquet")


def structure(t: Translation) -> None:
    """Translate what several flags of ms-swift say together."""
    kind = t.key("rlhf_type")
    name = str(kind.value) if kind is not None else t.trainer.lower()
    if name not in ("sft", "dpo"):
        what = f"there is no import of ms-swift's '{visible(name)[:40]}' yet"
        t.stop(kind, what, f"trainer {visible(name)[:40]}")
        return
    t.trainer = name
    arguments.value(t, "model.path", "model")
    adapter(t)
    t.method("alignment", name, kind)
    loss = t.key("loss_type")
    if name == "dpo":
        arguments.value(t, "alignment.beta", "beta")
        if loss is not None:
            listed = loss.value if isinstance(loss.value, list) else [loss.value]
            t.set("alignment.loss_type", [str(one) for one in listed], loss)
    elif loss is not None:
        t.note("cannot", loss, "another loss", missing="loss_type of sft")
    rows(t)
    rates(t)
    arguments.steps(t)
    arguments.schedule(t)
    arguments.value(t, "train.weight_decay", "weight_decay")
    arguments.checkpointing(t)
    arguments.saving(t)
    arguments.noise(t)
    arguments.trackers(t)
    arguments.hub(t)
    evaluation(t)
    precision(t)
    weights.attention(t, "attn_impl")
    length(t)


def adapter(t: Translation) -> None:
    """Write LoRA or DoRA, or full fine-tuning."""
    key = t.key("tuner_type") or t.key("train_type")
    kind = str(key.value) if key is not None else str(t.get("tuner_type"))
    if kind == "full":
        weights.full(t, key)
        for name in ("lora_rank", "lora_alpha", "lora_dropout", "target_modules"):
            if (unused := t.key(name)) is not None:
                t.note("none", unused, "no adapter is trained", block="adapter")
        return
    if kind != "lora":
        t.note(
            "cannot", key, f"tuner_type '{visible(kind)[:40]}'", missing=f"tuner_type {kind[:40]}"
        )
        return
    dora = t.key("use_dora")
    uses_dora = dora is not None and dora.value is True
    why = "" if key is not None or uses_dora else f"the default of {t.origin}"
    t.method("adapter", "dora" if uses_dora else "lora", dora if uses_dora else key, why)
    arguments.value(t, "adapter.r", "lora_rank")
    arguments.value(t, "adapter.lora_alpha", "lora_alpha")
    arguments.value(t, "adapter.lora_dropout", "lora_dropout")
    if t.key("target_modules") is None:
        t.set("adapter.target_modules", "all-linear", None, f"the default of {t.origin}")
    else:
        weights.targets(t, "target_modules")
    saved = t.key("modules_to_save")
    if saved is not None:
        listed = saved.value if isinstance(saved.value, list) else [saved.value]
        t.set("adapter.modules_to_save", listed, saved)
    for home, name in (("use_rslora", "use_rslora"), ("bias", "lora_bias")):
        if (found := t.key(name)) is not None:
            t.set(f"adapter.{home}", found.value, found)


def rows(t: Translation) -> None:
    """Write rows in a local file; those of ms-swift's registry are made by its own code."""
    key, system = t.key("dataset"), t.key("system")
    listed = [] if key is None else key.value if isinstance(key.value, list) else [key.value]
    if len(listed) != 1:
        what = "several data sets in one stage" if listed else "no flag names the rows"
        missing = "several data sets" if listed else "no rows are named"
        t.note("cannot" if listed else "decide", key or "dataset", what, missing=missing)
        return
    path, _, count = str(listed[0]).partition("#")
    if not path.endswith(_FILES):
        what = f"rows of '{visible(path)[:60]}' as ms-swift's own code makes them, from ModelScope"
        t.note("cannot", key, what, missing="rows of ms-swift's registry")
        return
    if count:
        t.note("cannot", key, "a number of rows drawn at random", missing="rows drawn at random")
    if t.trainer == "dpo":
        t.note("cannot", key, "ms-swift's form of preferences", missing="rows of preferences")
        return
    forms.rows_of(t, "chat", {}, learn="all")
    forms.source(t, path, key)
    if system is not None:
        t.set("data.system", system.value, system)
    else:
        what = "ms-swift's template may add a system text that the model's own does not"
        t.note("decide", "template", what, block="data", missing="ms-swift's own template")


def rates(t: Translation) -> None:
    """Write the learning rate and the accumulation; both defaults depend on other flags."""
    key = t.key("learning_rate")
    if key is not None:
        t.set("train.learning_rate", arguments.number(key.value), key)
    else:
        rate = 1e-5 if t.draft.get("adapter.method") == "full" else 1e-4
        t.set("train.learning_rate", rate, None, f"the default of {t.origin}")
    steps = t.key("gradient_accumulation_steps")
    if steps is not None:
        t.set("train.gradient_accumulation_steps", steps.value, steps)
    else:
        what = "ms-swift makes a step of 16 rows of it; write gradient_accumulation_steps"
        t.note("decide", "gradient_accumulation_steps", what, missing="accumulation not stated")


def evaluation(t: Translation) -> None:
    """Write the share that is held out, and when it is scored."""
    share, key = t.get("split_dataset_ratio"), t.key("split_dataset_ratio")
    held = float(share) if isinstance(share, int | float) and 0 < share < 1 else None
    arguments.evaluation(t, holdout=held, key=key)


def precision(t: Translation) -> None:
    """Write the type of the weights, which decides whether autocast is on."""
    key, bf16 = t.key("torch_dtype"), t.key("bf16")
    if key is None:
        what = "the type of the checkpoint's weights; --anyway takes float32"
        t.note("decide", "torch_dtype", what, block="model", missing="dtype auto")
        return
    weights.dtype(t, str(key.value), key)
    if key.value != "bfloat16":
        t.note("decide", key, "training in float16 with a loss scale", missing="float16")
    t.set("train.bf16", True, bf16 or key)
    sharded: Key | None = t.configuration.keys.get("deepspeed") or t.configuration.keys.get("fsdp")
    weights.weights_of_full(t, sharded)


def length(t: Translation) -> None:
    """Write the longest row: a longer one is left out, unless it is to be cut."""
    longest, rule, packing = t.key("max_length"), t.key("truncation_strategy"), t.key("packing")
    if longest is not None:
        t.set("train.max_length", longest.value, longest)
    said = str(rule.value) if rule is not None else "delete"
    if said == "delete":
        why = "" if rule is not None else f"the default of {t.origin}"
        t.set("train.on_long_row", "drop", rule, why)
        t.set("train.max_dropped", 1.0, None, "ms-swift drops any number of them")
    elif said == "right" and t.trainer == "sft":
        t.set("train.on_long_row", "truncate", rule)
    else:
        t.note("cannot", rule, f"rows cut by '{visible(said)[:20]}'", missing="truncation_strategy")
    if packing is not None and packing.value is True:
        kind = t.key("attn_impl")
        if kind is None or "flash" not in str(kind.value):
            what = "without FlashAttention packed rows see each other; here they never do"
            t.note("decide", packing, what, missing="packed rows that see each other")
        t.set("train.packing", True, packing)
        t.note("speed", packing, "which rows are packed together differs", block="train")
