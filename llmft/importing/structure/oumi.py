"""oumi: its trainers, adapters, lengths and precision; its data sets are classes of its own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from llmft.importing.configuration import Key, as_bool
from llmft.importing.peer_translation import Translation
from llmft.importing.structure import arguments, forms, weights
from llmft.importing.tables import known_templates
from llmft.recipes.tree import visible

_TRAINERS = {"TRL_SFT": "sft", "TRL_DPO": "dpo", "TRL_KTO": "kto", "TRL_GRPO": "grpo"}
_LEARNT = "text_completions_only_with_padding"


def structure(t: Translation) -> None:
    """Translate what several keys of oumi say together."""
    key = t.key("training.trainer_type")
    name = str(key.value) if key else "HF"
    if name not in _TRAINERS:
        t.stop(
            key,
            f"there is no alignment like oumi's '{visible(name)[:40]}' yet",
            f"trainer {visible(name)[:40]}",
        )
        return
    t.trainer = _TRAINERS[name]
    t.method("alignment", t.trainer, key)
    arguments.value(t, "model.path", "model.model_name")
    loaded = t.key("model.load_pretrained_weights")
    if loaded is not None and loaded.value is False:
        t.note("cannot", loaded, "training from random weights", missing="random weights")
    dropout = t.key("model.model_kwargs.disable_dropout")
    if dropout is not None and dropout.value is True:
        t.note("none", dropout, "a base in use today has no dropout", block="model")
    adapter(t)
    rows(t)
    training(t)
    precision(t)
    weights.attention(t, "model.attn_implementation")
    longest = t.key("model.model_max_length")
    if longest is not None:
        t.set("train.max_length", longest.value, longest)
    if t.trainer == "sft":
        t.set("train.on_long_row", "truncate", None, "oumi cuts a longer row at its end")
    else:
        t.set("train.on_long_row", "fail", None, "oumi cuts a longer pair in another way")
    template = t.key("model.chat_template")
    rule = t.table.rule("model.chat_template")
    known = rule.values.get(str(template.value)) if rule and template is not None else None
    if template is not None and known is not None:
        text = known_templates()[known].text
        t.set("model.chat_template", text, template, "as oumi writes turns of text")
    elif template is not None and template.value != "auto":
        t.note(
            "decide",
            template,
            "a chat template of oumi's own; --anyway takes the model's",
            block="model",
            missing="a chat template of oumi's own",
        )
    elif template is not None:
        t.note("none", template, "the model's own", block="model")


def adapter(t: Translation) -> None:
    """Write LoRA, QLoRA, or full fine-tuning."""
    asked = t.key("training.use_peft")
    if as_bool(t.get("training.use_peft")) is not True:
        weights.full(t, asked, "" if asked else f"the default of {t.origin}")
        for name, unused in t.configuration.under("peft").items():
            if unused.value not in (None, False, [], "auto"):
                t.key(f"peft.{name}")
                t.note("none", unused, "no adapter is trained", block="adapter")
        return
    quantised = t.key("peft.q_lora")
    four = quantised is not None and quantised.value is True
    bits = t.get("peft.q_lora_bits")
    if four and bits == 8:
        four = False
        t.set("model.quantization.load_in_8bit", True, quantised)
    t.method("adapter", "qlora" if four else "lora", quantised if four else asked)
    for home, name in (
        ("r", "lora_r"),
        ("lora_alpha", "lora_alpha"),
        ("lora_dropout", "lora_dropout"),
    ):
        arguments.value(t, f"adapter.{home}", f"peft.{name}")
    weights.targets(t, "peft.lora_target_modules")
    excluded = t.key("peft.lora_exclude_modules")
    if excluded is not None and excluded.value:
        # oumi 0.8, PeftParams.to_lora: PEFT gets one pattern, which fits a module's whole name.
        listed = excluded.value if isinstance(excluded.value, list) else [excluded.value]
        t.set("adapter.exclude_modules", "|".join(f"({one})" for one in listed), excluded)
    for home, name in (("modules_to_save", "lora_modules_to_save"), ("bias", "lora_bias")):
        if (found := t.key(f"peft.{name}")) is not None:
            t.set(f"adapter.{home}", found.value, found)
    start = t.key("peft.lora_init_weights")
    if start is not None and str(start.value).lower() not in ("default", "true"):
        t.set("adapter.init_lora_weights", str(start.value).lower(), start)
    if four:
        for home, name in (
            ("bnb_4bit_quant_type", "bnb_4bit_quant_type"),
            ("bnb_4bit_use_double_quant", "use_bnb_nested_quant"),
            ("bnb_4bit_compute_dtype", "bnb_4bit_compute_dtype"),
        ):
            arguments.value(t, f"adapter.{home}", f"peft.{name}")
        weights.adapter_in_bfloat16(
            t, quantised, "TRL trains the adapter of a quantised base in bfloat16"
        )
        # oumi 0.8, builders/models.py: prepare_model_for_kbit_training.
        t.note(
            "speed",
            quantised,
            "oumi computes a quantised base's norms, embeddings and output layer in float32",
        )


def rows(t: Translation) -> None:
    """Say that oumi's data sets are classes, which make the conversations; only some are known."""
    listed = t.configuration.items("data.train.datasets")
    collator = t.key("data.train.collator_name")
    target = t.key("data.train.train_target")
    for name in t.configuration.under("data.train.collator_kwargs"):
        t.taken.add(f"data.train.collator_kwargs.{name}")
    for block in listed:
        for inner in t.configuration.under(block):
            t.taken.add(f"{block}.{inner}")
    only = (collator is not None and collator.value == _LEARNT) or (
        target is not None and target.value == "ALL_ASSISTANT_TURNS"
    )
    learn = "all" if only else "every_token"
    if not listed:
        t.note("decide", "data.train.datasets", "no key names the rows",
               missing="no rows are named")  # fmt: skip
    elif len(listed) == 1:
        one(t, listed[0], learn)
    else:
        key = t.configuration.keys.get(f"{listed[0]}.dataset_name")
        forms.several(t, key, [partial(one, t, block, learn) for block in listed])


def one(t: Translation, block: str, learn: str) -> None:
    """Write one data set, whose class makes the conversations."""
    inside = t.configuration.under(block)
    key = inside.get("dataset_name")
    name = str(key.value) if key is not None else ""
    files = inside.get("dataset_path")
    read = {"dataset_name", "dataset_path", "subset", "split", "shuffle", "seed"}
    read |= {"trust_remote_code", "transform_num_workers", *_OF_FORM}
    if name == "text_sft_jsonl" and files is not None:
        forms.rows_of(t, "chat", {}, learn=learn)
        forms.source(t, str(files.value), files)
    elif name in ALPACA and t.trainer == "sft":
        read.add("dataset_kwargs.include_system_prompt")
        alpaca(t, inside, learn, key)
    elif name in _CHATS and t.trainer == "sft":
        forms.rows_of(t, "chat", _CHATS[name], learn=learn)
        forms.source(t, name, key, inside.get("subset"))
    else:
        t.note(
            "cannot",
            key,
            f"rows that oumi's class for '{visible(name)[:60]}' makes",
            block="data",
            missing=f"rows of oumi's class {visible(name)[:60]}",
        )
        return
    part = inside.get("split")
    forms.split(t, str(part.value) if part is not None else "train", part)
    shuffled = inside.get("shuffle") or inside.get("seed")
    if shuffled is not None:
        t.note("none", shuffled, "rows are always shuffled here", block="data")
    for unread in [k for n, k in inside.items() if n not in read and k.value not in (None, False)]:
        t.note(
            "decide", unread, "it is not taken over here", block="data", missing=unread.rule_name
        )


ALPACA = ("yahma/alpaca-cleaned", "tatsu-lab/alpaca")
# Data sets whose class (src/oumi/datasets/sft) hands on the turns as they are, and their column.
_CHATS: dict[str, dict[str, str]] = {
    "HuggingFaceH4/ultrachat_200k": {},
    "Magpie-Align/Llama-3-Magpie-Pro-1M-v0.1": {"messages": "conversations"},
    "Magpie-Align/Magpie-Pro-300K-Filtered": {"messages": "conversations"},
}
# In which form a row is handed on; none of them changes its tokens.
_OF_FORM = ("dataset_kwargs.return_conversations", "dataset_kwargs.return_conversations_format")


def alpaca(t: Translation, inside: Mapping[str, Key], learn: str, key: Key | None) -> None:
    """Write Alpaca's rows as conversations: the opening of Alpaca's prompt is the system text.

    There are two openings, for rows with an input and for rows without one.
    """
    files, system = inside.get("dataset_path"), inside.get("dataset_kwargs.include_system_prompt")
    t.method("data", "instruction", key)
    t.set("data.with_input", "{instruction}\n\n### Input:\n{input}", None, "as oumi writes it")
    if system is None or system.value is not False:
        why = "Stanford Alpaca's opening, which oumi makes the system text"
        t.set("data.system", forms.ALPACA_OPENING.format(paired=""), system, why)
        paired = forms.ALPACA_OPENING.format(paired=forms.ALPACA_PAIRED)
        t.set("data.system_with_input", paired, None, f"{why} of rows with an input")
    t.set("data.learn", learn)
    path = files or key
    forms.source(t, str(path.value) if path else ALPACA[0], path, inside.get("subset"))


def training(t: Translation) -> None:
    """Write steps, schedule, clipping and saving."""
    most, key = t.get("training.max_steps"), t.key("training.max_steps")
    epochs = t.key("training.num_train_epochs")
    if isinstance(most, int) and most > 0:
        t.set("train.max_steps", most, key)
        if epochs is not None:
            t.note("none", epochs, "max_steps ends the training", block="train")
    else:
        arguments.value(t, "train.num_train_epochs", "training.num_train_epochs")
    arguments.value(t, "train.lr_scheduler_type", "training.lr_scheduler_type")
    kind = t.get("training.lr_scheduler_type")
    arguments.schedule_kwargs(t, "training.lr_scheduler_kwargs")
    count, ratio = t.key("training.warmup_steps"), t.key("training.warmup_ratio")
    if kind == "constant":
        for unused in (count, ratio):
            if unused is not None:
                t.note("none", unused, "the constant schedule ignores it", block="train")
    elif count is not None and count.value:
        t.set("train.warmup_steps", count.value, count)
        if ratio is not None:
            t.note("none", ratio, "warmup_steps goes before", block="train")
    elif ratio is not None and ratio.value:
        t.set("train.warmup_ratio", ratio.value, ratio)
    arguments.value(t, "train.weight_decay", "training.weight_decay")
    arguments.checkpointing(t, "training.enable_gradient_checkpointing")
    clip = t.key("training.max_grad_norm")
    value = arguments.number(clip.value) if clip is not None else t.get("training.max_grad_norm")
    t.set("train.max_grad_norm", value, clip, "" if clip else f"the default of {t.origin}")
    every, epoch = t.key("training.save_steps"), t.key("training.save_epoch")
    if every is not None and every.value:
        t.set("train.save_strategy", "steps", every)
        t.set("train.save_steps", every.value, every)
    else:
        ends = epoch is not None and epoch.value is True
        t.set(
            "train.save_strategy",
            "epoch" if ends else "no" if every is not None else "steps",
            every or epoch,
        )
    named = ("training.enable_wandb", "training.enable_mlflow", "training.enable_tensorboard")
    asked = {name.rpartition("_")[2]: t.key(name) for name in named}
    wanted = {n: key for n, key in asked.items() if key is not None and key.value is True}
    if wanted:
        arguments.use_trackers(t, list(wanted), next(iter(wanted.values())))


def precision(t: Translation) -> None:
    """Write the type of the weights, which is also that of what is trained without an adapter."""
    key = t.key("model.torch_dtype_str")
    name = str(key.value) if key else "auto"
    mixed = t.key("training.mixed_precision_dtype")
    autocast = str(mixed.value).lower() if mixed is not None else "none"
    t.set("model.dtype", weights.named(name), key, "" if key else f"the default of {t.origin}")
    asked = t.configuration.keys.get("deepspeed.enable_deepspeed")
    weights.weights_of_full(t, asked if asked is not None and asked.value is True else None)
    if autocast == "fp16":
        t.note("cannot", mixed, "training in float16 with a loss scale", missing="float16")
    t.set(
        "train.bf16", autocast == "bf16", mixed, "" if mixed else f"the default of {t.origin}: none"
    )
