"""Axolotl: adapter, alignment, rows, lengths, precision, and what is saved and scored."""

from __future__ import annotations

import re
from typing import Any

from llmft.importing.configuration import Key, as_bool
from llmft.importing.peer_translation import Translation
from llmft.importing.structure import common
from llmft.recipes.tree import visible

_ALIGNMENTS = {
    "dpo": "dpo",
    "ipo": "dpo",
    "orpo": "orpo",
    "kto": "kto",
    "simpo": "simpo",
    "grpo": "grpo",
}
_OWN_ATTENTION = re.compile(r"flash|flex|xformers|fa[23]|sage")
_ROLES = ({"role": "role", "content": "content"}, {"role": "from", "content": "value"})
_USUAL_ROLES = {
    "user": {"human", "user"},
    "assistant": {"gpt", "assistant"},
    "system": {"system"},
    "tool": {"tool"},
}


def structure(t: Translation) -> None:
    """Translate what several keys of Axolotl say together."""
    common.value(t, "model.path", "base_model")
    config = t.key("base_model_config")
    if config is not None and config.value != t.get("base_model"):
        t.note("cannot", config, "the config of another model", missing="base_model_config")
    kind = t.key("model_type")
    if kind is not None:
        causal = str(kind.value).endswith(("CausalLM", "ForConditionalGeneration"))
        grade: Any = "none" if causal and "Conditional" not in str(kind.value) else "cannot"
        t.note(
            grade,
            kind,
            "transformers chooses the model's class"
            if grade == "none"
            else "a model of another class than a causal language model",
            block="model",
            missing="a multimodal or classifying model",
        )
    alignment(t)
    if t.stopped:
        return
    adapter(t)
    rows(t)
    batches(t)
    schedule(t)
    common.weight_decay(t)
    common.checkpointing(t)
    saving(t)
    evaluation(t)
    precision(t)
    kind_of_attention = common.attention(t)
    length(t)
    packing(t, kind_of_attention)
    template(t)
    tokens(t)
    reporting(t)


def alignment(t: Translation) -> None:
    """Choose what is optimised; each has its own coefficients."""
    rl, reward = t.key("rl"), t.key("reward_model")
    name = str(rl.value) if rl else ""
    if reward is not None and reward.value is True:
        name = "reward"
    if not name:
        t.trainer = "sft"
        t.method("alignment", "sft")
        return
    t.trainer = name
    if name != "reward" and name not in _ALIGNMENTS:
        t.stop(
            rl,
            f"there is no alignment like Axolotl's '{visible(name)[:40]}' yet",
            f"trainer {visible(name)[:40]}",
        )
        return
    if name == "ipo":
        t.trainer = "dpo"
    t.method("alignment", _ALIGNMENTS.get(name, "reward"), rl or reward)
    beta = (
        t.key("rl_beta") or t.key("dpo_beta") or (t.key("orpo_alpha") if name == "orpo" else None)
    )
    if name in ("dpo", "ipo", "orpo", "kto"):
        t.set(
            "alignment.beta",
            beta.value if beta else 0.1,
            beta,
            "" if beta else f"the default of {t.origin}",
        )
    if name == "orpo":
        t.set(
            "alignment.learn_prompt", True, None, "TRL's ORPO computes the loss on the prompt too"
        )
    if name == "ipo":
        t.set("alignment.loss_type", ["ipo"], rl)
    for ours, theirs in (
        ("loss_type", "dpo_loss_type"),
        ("loss_weights", "dpo_loss_weights"),
        ("label_smoothing", "dpo_label_smoothing"),
    ):
        if name == "dpo" and (key := t.key(theirs)) is not None:
            t.set(f"alignment.{ours}", key.value, key)
    for theirs in ("kto_desirable_weight", "kto_undesirable_weight"):
        if name == "kto" and (key := t.key(theirs)) is not None:
            t.set(f"alignment.{theirs.removeprefix('kto_')}", key.value, key)
    if name == "reward" and (key := t.key("center_rewards_coefficient")) is not None:
        t.set("alignment.center_rewards_coefficient", key.value, key)


def adapter(t: Translation) -> None:
    """Write LoRA, QLoRA or DoRA, or full fine-tuning where no adapter is named."""
    key = t.key("adapter")
    four, eight = t.get("load_in_4bit"), t.get("load_in_8bit")
    name = str(key.value) if key else ""
    if not name:
        common.full(t, key, "no adapter is named: all weights are trained")
        for unused in (
            "lora_r",
            "lora_alpha",
            "lora_dropout",
            "lora_target_modules",
            "lora_target_linear",
            "lora_modules_to_save",
        ):
            if (found := t.key(unused)) is not None:
                t.note("none", found, "no adapter is trained", block="adapter")
        for width in ("load_in_4bit", "load_in_8bit"):
            if (found := t.key(width)) is not None and found.value is True:
                t.note("cannot", found, "training all weights of a quantised base")
        return
    dora = t.key("peft_use_dora")
    uses_dora = dora is not None and dora.value is True
    if name not in ("lora", "qlora"):
        t.note("cannot", key, f"an adapter '{visible(name)[:40]}'", missing=f"adapter {name[:40]}")
        return
    if uses_dora and four:
        t.note("cannot", dora, "DoRA on a base of 4 bits")
    method = "dora" if uses_dora else "qlora" if four else "lora"
    t.method("adapter", method, key if key and method == name else dora if uses_dora else key)
    for home, theirs in (
        ("r", "lora_r"),
        ("lora_alpha", "lora_alpha"),
        ("lora_dropout", "lora_dropout"),
    ):
        if not common.value(t, f"adapter.{home}", theirs) and home != "lora_dropout":
            t.note("decide", theirs, "Axolotl needs it", missing=f"{theirs} not stated")
    linear, modules = t.key("lora_target_linear"), t.key("lora_target_modules")
    if linear is not None and linear.value is True:
        t.set("adapter.target_modules", "all-linear", linear)
        if modules is not None:
            t.note("none", modules, "lora_target_linear takes every linear layer", block="adapter")
    else:
        common.targets(t, "lora_target_modules")
    for home, theirs in (
        ("modules_to_save", "lora_modules_to_save"),
        ("layers_to_transform", "peft_layers_to_transform"),
        ("use_rslora", "peft_use_rslora"),
        ("init_lora_weights", "peft_init_lora_weights"),
        ("loraplus_lr_ratio", "loraplus_lr_ratio"),
        ("target_parameters", "lora_target_parameters"),
    ):
        if (found := t.key(theirs)) is not None and found.value not in ([], False):
            t.set(f"adapter.{home}", found.value, found)
    if four:
        why = f"the default of {t.origin}"
        t.set("adapter.bnb_4bit_quant_type", "nf4", None, why)
        t.set("adapter.bnb_4bit_use_double_quant", True, None, why)
    elif eight:
        t.set("model.quantization.load_in_8bit", True, t.key("load_in_8bit"))
    if four and eight:
        t.note("decide", t.key("load_in_8bit"), "4 and 8 bits exclude each other")


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
    if len(listed) > 1:
        t.note(
            "cannot",
            t.configuration.keys.get(f"{listed[1]}.path") or "datasets",
            "several data sets in one stage",
            missing="several data sets",
        )
    for block in listed:
        for inner in t.configuration.under(block):
            t.taken.add(f"{block}.{inner}")
    one(t, listed[0])


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
        common.rows_of(t, "text", {"text": str(field.value)} if field else {}, learn="all")
        t.set(
            "train.on_long_row",
            "fail",
            None,
            "Axolotl cuts a longer text into several rows, so it is refused here",
        )
    elif t.trainer in ("dpo", "orpo", "reward", "kto", "grpo") or name:
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
    common.source(t, where, path, inner.get("name"))
    revision = inner.get("revision")
    if revision is not None:
        t.set("data.revision", str(revision.value), revision)
    kind_of_file = inner.get("ds_type")
    if kind_of_file is not None:
        t.note("none", kind_of_file, "the file's ending says it here", block="data")
    part = inner.get("split")
    if part is not None:
        common.split(t, str(part.value), part)


# Tokenizers that put a space before the first word of a text: it would begin an answer there.
_SPACED = re.compile(
    r"llama-?2|tinyllama|open_llama|codellama|(?:^|/)llama-\d+b|mistral|mixtral|vicuna|phi-?3|"
    r"(?:^|[/-])yi-|zephyr|solar",
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
    path = str(t.draft.get("model.path") or "")
    if _SPACED.search(path):
        t.note(
            "decide",
            kind,
            "Axolotl encodes prompt and answer apart, and this tokenizer then puts a space before"
            " the answer; here they are one text",
            missing="a space before the answer",
        )
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
    common.rows_of(t, "chat", {"messages": str(messages.value)} if messages else {}, learn="all")
    if learn != "all":
        t.set("data.learn", learn, learnt or t.key("train_on_inputs"))
    roles: dict[str, set[str]] = {}
    for name, key in inner.items():
        if name.startswith("roles."):
            listed = key.value if isinstance(key.value, list) else [key.value]
            roles[name.removeprefix("roles.")] = {str(one) for one in listed}
    if any(not names <= _USUAL_ROLES.get(role, set()) for role, names in roles.items()):
        t.note(
            "cannot",
            inner[f"roles.{next(iter(roles))}"],
            "names of roles of their own",
            missing="names of roles",
        )
        return False
    if (eos := inner.get("train_on_eos")) is not None and eos.value != "turn":
        t.note("cannot", eos, "which ends of turns are learnt", missing="train_on_eos")
    if (own := inner.get("chat_template")) is not None and own.value != "tokenizer_default":
        t.note(
            "decide",
            own,
            "a chat template of Axolotl's own; here the model's is taken",
            missing="a chat template of Axolotl's own",
        )
    if (dropped := inner.get("drop_system_message")) is not None and dropped.value is True:
        t.note("cannot", dropped, "system turns left out", missing="drop_system_message")
    if (tools := inner.get("field_tools")) is not None:
        t.set("data.tools_column", str(tools.value), tools)
    return True


def batches(t: Translation) -> None:
    """Write steps, and how many forward passes one takes."""
    most, key = t.get("max_steps"), t.key("max_steps")
    if isinstance(most, int) and most > 0:
        t.set("train.max_steps", most, key)
        if (epochs := t.key("num_epochs")) is not None:
            t.note("none", epochs, "max_steps ends the training", block="train")
        elif t.configuration.keys.get("num_epochs") is None:
            t.taken.add("num_epochs")
    else:
        common.value(t, "train.num_train_epochs", "num_epochs")
    total, per_pass = t.key("batch_size"), t.get("micro_batch_size")
    if total is not None and not t.stated("gradient_accumulation_steps"):
        if isinstance(total.value, int) and isinstance(per_pass, int) and per_pass > 0:
            t.set("train.gradient_accumulation_steps", max(1, total.value // per_pass), total)
    else:
        common.value(t, "train.gradient_accumulation_steps", "gradient_accumulation_steps")
        if total is not None:
            t.note("none", total, "gradient_accumulation_steps goes before", block="train")
    if not t.stated("eval_batch_size") and isinstance(per_pass, int):
        t.set(
            "train.per_device_eval_batch_size",
            per_pass,
            None,
            "eval_batch_size is micro_batch_size",
        )


_SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt")


def schedule(t: Translation) -> None:
    """Write the schedule; Axolotl rounds a warm-up by share down to whole steps."""
    kind, key = str(t.get("lr_scheduler")), t.key("lr_scheduler")
    least = t.key("cosine_min_lr_ratio")
    constant = t.key("cosine_constant_lr_ratio")
    if least is not None and least.value and kind == "cosine":
        if constant is not None and constant.value:
            t.note(
                "cannot",
                constant,
                "a schedule with a constant end",
                missing="cosine_constant_lr_ratio",
            )
        else:
            t.set("train.lr_scheduler_type", "cosine_with_min_lr", least)
            t.set("train.lr_scheduler_kwargs", {"min_lr_rate": least.value}, least)
    else:
        for unused in (least, constant):
            if unused is not None:
                t.note(
                    "none", unused, "it acts with cosine_min_lr_ratio above 0 only", block="train"
                )
        common.value(t, "train.lr_scheduler_type", "lr_scheduler")
        inner = {n: k.value for n, k in t.configuration.under("lr_scheduler_kwargs").items()}
        for name in inner:
            t.taken.add(f"lr_scheduler_kwargs.{name}")
        if inner:
            t.set("train.lr_scheduler_kwargs", inner, key)
    count, ratio = t.key("warmup_steps"), t.key("warmup_ratio")
    if kind == "constant":
        for unused in (count, ratio):
            if unused is not None and unused.value:
                t.note("none", unused, "the constant schedule ignores it", block="train")
        return
    rounding = "Axolotl rounds it down to whole steps, and here it is rounded up"
    if count is not None:
        if isinstance(count.value, float) and 0 < count.value < 1:
            t.set("train.warmup_ratio", count.value, count, "below 1 it is a share of all steps")
        elif count.value:
            t.set(
                "train.warmup_steps",
                2 if count.value == 1 else count.value,
                count,
                "Axolotl makes 1 step 2" if count.value == 1 else "",
            )
        if ratio is not None:
            t.note("none", ratio, "warmup_steps goes before", block="train")
    elif ratio is not None:
        if ratio.value:
            t.set("train.warmup_ratio", ratio.value, ratio)
            t.note("speed", ratio, rounding, block="train")
    else:
        steps = t.draft.get("train.max_steps")
        why = f"the default of {t.origin}, at most 100 steps"
        if isinstance(steps, int):
            t.set("train.warmup_steps", min(int(0.03 * steps), 100), None, why)
        else:
            t.set("train.warmup_ratio", 0.03, None, why)
            t.note(
                "decide",
                "warmup_ratio",
                "the warm-up is 3 % of the steps, at most 100 of them; --anyway writes 3 %",
                missing="warm-up not stated",
            )


def _share(t: Translation, name: str) -> float | None:
    """Return so many times an epoch as a share of the run; None where that is every step."""
    key = t.key(name)
    epochs = t.get("num_epochs")
    if key is None or not isinstance(key.value, int) or not isinstance(epochs, int | float):
        return None
    share = 1.0 / (key.value * epochs) if key.value and epochs else 0.0
    return round(share, 6) if 0 < share < 1 else None


def saving(t: Translation) -> None:
    """Write when checkpoints are saved: nothing that is trained depends on it."""
    every, times, strategy = t.key("save_steps"), t.key("saves_per_epoch"), t.key("save_strategy")
    block = "train"
    if times is not None and times.value:
        if times.value == 1:
            t.set("train.save_strategy", "epoch", times)
        elif (share := _share(t, "saves_per_epoch")) and "Interval" in common._annotation(
            "save_steps"
        ):
            t.set("train.save_strategy", "steps", times)
            t.set("train.save_steps", share, times, "as a share of the run")
        else:
            t.set("train.save_strategy", "epoch", times)
            t.note("logging", times, "checkpoints at the end of each epoch only", block=block)
    elif every is not None and every.value:
        share = isinstance(every.value, float) and every.value < 1
        if share and "Interval" not in common._annotation("save_steps"):
            t.set("train.save_strategy", "epoch", every)
            t.note("logging", every, "checkpoints at a share of the run", block=block)
        else:
            t.set("train.save_strategy", "steps", every)
            t.set("train.save_steps", every.value, every)
        if strategy is not None and strategy.value != "steps":
            t.note("none", strategy, "save_steps goes before", block=block)
    elif strategy is not None and strategy.value in ("no", "epoch", "steps", False):
        t.set("train.save_strategy", "no" if strategy.value is False else strategy.value, strategy)
    else:
        if strategy is not None:
            t.note("logging", strategy, "checkpoints are kept by their score", block=block)
        t.set("train.save_strategy", "epoch", None, f"the default of {t.origin}")
    kept = t.key("save_total_limit")
    if kept is not None and isinstance(kept.value, int):
        t.set("train.save_total_limit", max(2, kept.value), kept)
    if (sent := t.key("hub_model_id")) is not None:
        t.set("push_to_hub.repo_id", str(sent.value), sent)


def evaluation(t: Translation) -> None:
    """Write which rows are held out, and when they are scored."""
    held, key = t.get("val_set_size"), t.key("val_set_size")
    tests = t.configuration.items("test_datasets")
    for block in tests:
        for inner in t.configuration.under(block):
            t.taken.add(f"{block}.{inner}")
    times, every = t.key("evals_per_epoch"), t.key("eval_steps")
    strategy = t.key("eval_strategy") or t.key("evaluation_strategy")
    best, patience = bool(t.get("load_best_model_at_end")), t.key("early_stopping_patience")
    metric, greater = t.key("metric_for_best_model"), t.key("greater_is_better")
    best_key = t.key("load_best_model_at_end")
    held = held if isinstance(held, int | float) and not isinstance(held, bool) else 0
    if tests:
        t.note(
            "cannot" if best or patience else "logging",
            t.configuration.keys.get(f"{tests[0]}.path"),
            "another data set is scored on",
            missing="evaluation on another data set",
        )
    if held >= 1:
        t.note(
            "cannot",
            key,
            "a number of rows is held out; here a share is",
            block="evaluate",
            missing="val_set_size as a number of rows",
        )
    elif held > 0:
        t.set("evaluate.holdout", held, key)
    if held == 0 or tests:
        for unused in (times, every, strategy, metric, greater, best_key):
            if unused is not None and unused.value not in (0, False, "no", ""):
                t.note(
                    "none" if not tests else "logging", unused, "no rows are held out here to score"
                )
        if patience is not None and not tests:
            t.note("decide", patience, "no rows are held out to score", missing="early stopping")
        return
    without: Any = "cannot" if best or patience else "logging"
    if times is not None and times.value:
        share = _share(t, "evals_per_epoch")
        if times.value == 1:
            t.set("evaluate.eval_strategy", "epoch", times, without=without)
        elif share:
            t.set("evaluate.eval_strategy", "steps", times, without=without)
            t.set("evaluate.eval_steps", share, times, "as a share of the run", without=without)
    elif every is not None and every.value:
        t.set("evaluate.eval_strategy", "steps", every, without=without)
        t.set("evaluate.eval_steps", every.value, every, without=without)
    elif strategy is not None and strategy.value not in (False, "no"):
        t.set("evaluate.eval_strategy", strategy.value, strategy, without=without)
    for home, found in (
        ("load_best_model_at_end", best_key if best else None),
        ("early_stopping_patience", patience),
        ("metric_for_best_model", metric),
        ("greater_is_better", greater),
    ):
        if found is not None:
            said = found.value
            if isinstance(said, str):
                said = said.removeprefix("eval_")
            t.set(f"evaluate.{home}", said, found, without=without)
    if patience is not None and not best:
        t.set(
            "evaluate.load_best_model_at_end",
            True,
            patience,
            "Axolotl takes the best checkpoint where it stops early",
            without=without,
        )


def precision(t: Translation) -> None:
    """Write the type of the base's weights and of the computation: Axolotl gives both one type."""
    for name in ("fp16", "float16"):
        if (found := t.key(name)) is not None and found.value is True:
            t.note("cannot", found, "training in float16 with a loss scale", missing="float16")
    said = t.key("bf16")
    other = t.key("bfloat16")
    bf16 = as_bool(t.get("bf16"))
    asked = t.key("torch_dtype")
    if asked is not None:
        t.note("none", asked, "bf16 decides the type of the weights", block="model")
    if bf16 == "auto":
        why = "bfloat16, as on every GPU that has it"
        t.set("model.dtype", "bfloat16", said, why if said else f"the default of {t.origin}: {why}")
        t.set("train.bf16", True, said, "" if said else f"the default of {t.origin}")
    elif bf16 is True or (other is not None and other.value is True):
        t.set("model.dtype", "bfloat16", said or other)
        t.set("train.bf16", True, said or other)
    elif bf16 == "full":
        t.note("cannot", said, "bfloat16 without autocast", missing="bf16: full")
    else:
        t.set("model.dtype", "float32", said)
        t.set("train.bf16", False, said)
    sharding = next((t.key(n) for n in ("deepspeed", "fsdp", "fsdp_version") if t.stated(n)), None)
    if sharding is None and t.configuration.under("fsdp_config"):
        sharding = next(iter(t.configuration.under("fsdp_config").values()))
    common.weights_of_full(t, sharding)


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
    chat = t.draft.get("data.method") == "chat"
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
    if jinja is not None and (key is None or key.value in ("jinja", None)):
        t.set("model.chat_template", jinja.value, jinja)
        if key is not None:
            t.note("none", key, "the template is that of chat_template_jinja", block="model")
    elif key is not None and key.value != "tokenizer_default":
        t.note(
            "decide",
            key,
            "a chat template of Axolotl's own; --anyway takes the model's",
            block="model",
            missing="a chat template of Axolotl's own",
        )
    if kwargs:
        t.set(
            "model.chat_template_kwargs",
            {n: k.value for n, k in kwargs.items()},
            next(iter(kwargs.values())),
        )
    if system is not None:
        t.set("data.system", system.value, system)
    if ends is not None:
        t.note(
            "none",
            ends,
            "the token that ends an answer in the template is always learnt",
            block="data",
        )
    else:
        t.note(
            "none",
            None,
            "Axolotl learns the end of an answer only where it is the tokenizer's"
            " end-of-text or one of eot_tokens; here it is always learnt",
            block="data",
        )


def tokens(t: Translation) -> None:
    """Tell of tokens that begin and end texts, which change what is trained if they are others."""
    for name in ("bos_token", "eos_token"):
        key = t.key(f"special_tokens.{name}")
        if key is None or key.value is None:
            continue
        path = str(t.draft.get("model.path") or "").lower()
        usual = {"bos_token": "<s>", "eos_token": "</s>"}[name]
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


def reporting(t: Translation) -> None:
    """Write the tracker: Axolotl reports to Weights & Biases where a project is named."""
    project, use, entity = t.key("wandb_project"), t.key("use_wandb"), t.key("wandb_entity")
    if (project is not None and project.value) or (use is not None and use.value is True):
        common.use_trackers(t, ["wandb"], project or use)  # type: ignore[arg-type]
        if project is not None:
            t.note("logging", project, "the tracker's project is set at the tracker here")
    if entity is not None and entity.value:
        t.note("none", entity, "the user or team at a tracker")
