"""ms-swift: training on rows in local files and on those that its registry names."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from llmft.importing.configuration import Key
from llmft.importing.peer_translation import Translation
from llmft.importing.structure import arguments, forms, weights
from llmft.importing.structure.ms_swift import grpo
from llmft.importing.tables import ends_of, known_templates, registered_rows, template_of
from llmft.recipes.tree import visible
from llmft.system.plain_files import read_small

_FILES = (".jsonl", ".json", ".csv", ".parquet")


def structure(t: Translation) -> None:
    """Translate what several flags of ms-swift say together."""
    kind = t.key("rlhf_type")
    name = str(kind.value) if kind is not None else t.trainer.lower()
    if name not in ("sft", "dpo", "orpo", "grpo"):
        what = f"there is no import of ms-swift's '{visible(name)[:40]}' yet"
        t.stop(kind, what, f"trainer {visible(name)[:40]}")
        return
    t.trainer = name
    arguments.value(t, "model.path", "model")
    adapter(t)
    t.method("alignment", name, kind)
    loss = t.key("loss_type")
    if name == "dpo":
        preferences(t, loss)
    elif name == "grpo":
        grpo.method(t, loss)
    elif name == "orpo":
        arguments.value(t, "alignment.beta", "beta")
        if loss is not None:
            t.note("cannot", loss, "another loss", missing="loss_type of orpo")
    elif loss is not None:
        t.note("cannot", loss, "another loss", missing="loss_type of sft")
    weights.continued(t, "adapters")
    dynamic = t.key("enable_dft_loss")
    if name == "sft" and dynamic is not None and dynamic.value is True:
        t.set("alignment.loss_type", "dft", dynamic)
    rows(t)
    template(t)
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
    if name == "grpo":
        grpo.length(t)
        grpo.step(t)
    else:
        length(t)


def preferences(t: Translation, loss: Key | None) -> None:
    """Write DPO's losses; rpo_alpha adds that of the better answers, the mean over their tokens."""
    arguments.value(t, "alignment.beta", "beta")
    said = [] if loss is None else loss.value if isinstance(loss.value, list) else [loss.value]
    names, alpha = [str(one) for one in said], t.key("rpo_alpha")
    if alpha is not None and alpha.value:
        names = [*(names or ["sigmoid"]), "sft"]
        if len(names) > 2:
            t.note("cannot", alpha, "rpo_alpha beside several losses", missing="rpo_alpha")
        t.set("alignment.loss_weights", [1.0, arguments.number(alpha.value)], alpha)
    if names:
        t.set("alignment.loss_type", names, loss or alpha)


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
    four = quantised(t)
    if uses_dora and four:
        t.note("cannot", dora, "DoRA on a base of 4 bits")
    why = "" if key is not None or uses_dora else f"the default of {t.origin}"
    method, chosen = ("dora", dora) if uses_dora else ("qlora" if four else "lora", four or key)
    t.method("adapter", method, chosen, why)
    if four and not uses_dora:
        quant, double = t.get("bnb_4bit_quant_type"), t.get("bnb_4bit_use_double_quant")
        t.set(
            "adapter.bnb_4bit_quant_type",
            quant,
            t.key("bnb_4bit_quant_type"),
            unstated(t, "bnb_4bit_quant_type"),
        )
        t.set(
            "adapter.bnb_4bit_use_double_quant",
            double,
            t.key("bnb_4bit_use_double_quant"),
            unstated(t, "bnb_4bit_use_double_quant"),
        )
        compute = t.key("bnb_4bit_compute_dtype")
        said = str(compute.value) if compute is not None else kind_of_weights(t)
        if said:
            why = "" if compute is not None else f"{t.origin} takes the type of the weights"
            t.set("adapter.bnb_4bit_compute_dtype", said, compute, why)
    arguments.value(t, "adapter.r", "lora_rank")
    arguments.value(t, "adapter.lora_alpha", "lora_alpha")
    arguments.value(t, "adapter.lora_dropout", "lora_dropout")
    if t.key("target_modules") is None:
        t.set("adapter.target_modules", "all-linear", None, f"the default of {t.origin}")
    else:
        weights.targets(t, "target_modules", joins=True)
    saved = t.key("modules_to_save")
    if saved is not None:
        listed = saved.value if isinstance(saved.value, list) else [saved.value]
        t.set("adapter.modules_to_save", listed, saved)
    for home, name in (("use_rslora", "use_rslora"), ("bias", "lora_bias")):
        if (found := t.key(name)) is not None:
            t.set(f"adapter.{home}", found.value, found)


def unstated(t: Translation, name: str) -> str:
    """Return the comment of a value that the command may not state."""
    return "" if t.key(name) is not None else f"the default of {t.origin}"


def quantised(t: Translation) -> Key | None:
    """Return the key of a base in 4 bits; one in 8 bits is written as the model's.

    ms-swift 4.6, quant_args.py: bitsandbytes' settings; PEFT keeps the adapter in float32, for
    nothing is prepared for k bits.
    """
    method, bits = t.key("quant_method"), t.key("quant_bits")
    if method is None:
        return None
    if method.value != "bnb" or bits is None or bits.value not in (4, 8):
        what = f"a base stored by {visible(str(method.value))[:20].upper()}"
        t.note("cannot", method, what, missing=what)
        return None
    if bits.value == 4:
        return bits
    t.set("model.quantization.load_in_8bit", True, bits)
    return None


def rows(t: Translation) -> None:
    """Write the data sets, one after the other where there are several."""
    key = t.key("dataset")
    for name in ("system", "model_name", "model_author", "use_hf"):
        t.key(name)
    listed = [] if key is None else key.value if isinstance(key.value, list) else [key.value]
    if not listed:
        t.note("decide", "dataset", "no flag names the rows", missing="no rows are named")
        return
    assert key is not None
    if len(listed) == 1:
        one(t, str(listed[0]), key)
    else:
        forms.several(t, key, [partial(one, t, str(said), key) for said in listed])


def one(t: Translation, said: str, key: Key) -> None:
    """Write one data set: hf::name:subset#number, as dataset_syntax.py reads it."""
    hub, _, rest = said.rpartition("::")
    name, _, count = rest.partition("#")
    if name.endswith(_FILES):
        local(t, name, key)
    else:
        name, _, subset = name.partition(":")
        registered(t, name, subset, hub == "hf" or t.configuration.get("use_hf") is True, key)
    if not t.draft.get("data.method"):
        return
    system = t.key("system")
    if system is not None and t.draft.get("data.method") == "preference":
        t.note("cannot", system, "a system text for pairs", block="data", missing="system of pairs")
    elif system is not None and str(system.value).endswith(".txt"):
        system_in_a_file(t, system)
    elif system is not None:
        t.set("data.system", str(system.value).replace("\\n", "\n"), system)
    if count.isdigit() and int(count):
        why = "drawn at random; where there are fewer rows, whole passes and the rest at random"
        t.set("data.num_samples", int(count), key, why)
    elif count:
        t.note("decide", key, f"the number of rows '{visible(count)[:20]}'", missing="dataset")


def system_in_a_file(t: Translation, key: Key) -> None:
    """Write the system text that a small file holds, where that lies below the command or here.

    Not one elsewhere: a stranger's command would copy what the user alone can read.
    """
    for folder in (Path(t.configuration.folder).resolve(), Path.cwd()):
        path = (folder / str(key.value)).resolve()
        if path.is_relative_to(folder) and (text := read_small(path)) is not None:
            t.set("data.system", text, key, f"the text of {visible(str(key.value))[:80]}")
            return
    what = "the system text stands in a file, which is not here"
    t.note("decide", key, what, block="data", missing="system in a file")


def local(t: Translation, name: str, key: Key) -> None:
    """Write rows in a file: conversations, or what --rows says."""
    if t.trainer == "grpo":
        questions = t.rows in ("prompts", "prompt-completion")
        grpo.prompts(t, {"answers": "solution"}, key, questions=questions)
        forms.source(t, name, key)
        return
    if t.trainer != "sft":
        t.note("cannot", key, "ms-swift's form of preferences", missing="rows of preferences")
        return
    named = columns_of(t)
    if set(named) == {"query", "response"}:
        t.method("data", "instruction", key)
        t.set("data.columns.instruction", named["query"], t.key("columns"))
        t.set("data.columns.output", named["response"], t.key("columns"))
    elif t.rows in ("instruction", "prompt-completion"):
        t.method("data", "instruction", key)
        if t.rows == "prompt-completion":
            t.set("data.columns.instruction", "query", None, "as ms-swift calls a question")
            t.set("data.columns.output", "response", None, "as ms-swift calls an answer")
    else:
        forms.rows_of(t, "chat", named, learn="all")
    forms.source(t, name, key)


def columns_of(t: Translation) -> dict[str, str]:
    """Return what columns of a file are called, by ms-swift's names of them.

    --columns gives ours -> theirs, as JSON; of conversations, or of a question and an answer.
    """
    key = t.key("columns")
    if key is None:
        return {}
    given = key.value
    if isinstance(given, str):
        with suppress(ValueError):
            given = json.loads(given)
    found = {str(new): str(old) for old, new in given.items()} if isinstance(given, dict) else {}
    if set(found) not in ({"messages"}, {"query", "response"}):
        t.note("cannot", key, "other names of columns", missing="names of columns")
        return {}
    return found


def registered(t: Translation, name: str, subset: str, use_hf: bool, key: Key) -> None:
    """Write rows that ms-swift's registry names, where what its code makes of them is known."""
    known = registered_rows("ms-swift")
    found = next((f for f in known.values() if use_hf and f["hub"] == name), known.get(name))
    parts: Mapping[str, Any] = (found or {}).get("subsets", {})
    if found is None or (subset not in ("", "default") and subset not in parts):
        shown = visible(f"{name}:{subset}" if subset else name)[:60]
        what = f"rows of '{shown}' as ms-swift's own code makes them"
        t.note("cannot", key, what, block="data", missing="rows of ms-swift's registry")
        return
    facts = {**found, **parts.get(subset, {})}
    fitting = {"dpo": ("preference",), "orpo": ("preference",), "grpo": ("chat",)}
    if facts["form"] not in fitting.get(t.trainer, ("chat", "instruction")):
        what = f"'{t.trainer}' cannot train on the rows of '{visible(name)[:60]}'"
        t.note("cannot", key, what, block="data", missing="rows of another form")
        return
    columns = facts.get("columns", {})
    if t.trainer == "grpo":
        if not grpo.prompts(t, facts, key):
            return
        columns = {}
    elif facts["form"] == "chat":
        forms.rows_of(t, "chat", columns, learn="all")
    else:
        pairs = facts["form"] == "preference"
        t.method("data", "preference" if pairs else "instruction", key)
        if pairs:
            t.set("data.chat", True)
            t.set("data.strip_answers", False)
        for ours, column in columns.items():
            t.set(f"data.columns.{ours}", column)
    t.set("data.path", str(facts["hub"]), key)
    if not use_hf:
        what = f"ms-swift reads {name} of ModelScope; its registry pairs it with {facts['hub']}"
        t.note("none", None, what, block="data")
    if split := facts.get("split"):
        t.set("data.split", split)
    replace = [*facts.get("replace", []), *(placeholders(t) if facts.get("placeholders") else [])]
    if replace:
        t.set("data.replace", replace, key)


def placeholders(t: Translation) -> list[dict[str, str]]:
    """Return what stands in place of {{NAME}} and {{AUTHOR}} of swift/self-cognition."""
    found = []
    for flag, word in (("model_name", "NAME"), ("model_author", "AUTHOR")):
        if (key := t.key(flag)) is None:
            continue
        said = [str(one) for one in (key.value if isinstance(key.value, list) else [key.value])]
        if len(set(said)) > 1:
            what = "a Chinese and an English name, by the language of a row"
            t.note("cannot", key, what, missing="names by the language of a row")
            continue
        for column in ("query", "response"):
            found.append({"column": column, "text": f"{{{{{word}}}}}", "by": said[0]})
    return found


def template(t: Translation) -> None:
    """Write ms-swift's own template for the model, where its text is known."""
    key, path = t.key("template"), str(t.draft.get("model.path") or "")
    name = str(key.value) if key is not None else template_of("ms-swift", path)
    known = known_templates("ms-swift").get(name)
    if known is None:
        what = (
            f"ms-swift's own template '{visible(name)[:40]}' is not written out here"
            if name
            else f"which template ms-swift takes for '{visible(path)[:60]}' is not known here"
        )
        t.note("decide", key or "template", f"{what}; --anyway takes the model's", block="model",
               missing="ms-swift's own template")  # fmt: skip
        return
    why = f"as {t.origin} writes '{name}', its template for this model"
    t.set("model.chat_template", known.text, key, why)
    t.set("model.stop", [known.end], None, f"what ends an answer in '{name}'")
    if known.learn_end != "stop" and t.trainer != "grpo":
        why = "ms-swift learns the line break after an answer too"
        t.set("model.learn_template", known.learn_end, None, why)


def rates(t: Translation) -> None:
    """Write the learning rate and the accumulation; both defaults depend on other flags."""
    key = t.key("learning_rate")
    if key is not None:
        t.set("train.learning_rate", arguments.number(key.value), key)
    else:
        rate = 1e-5 if t.draft.get("adapter.method") == "full" else 1e-4
        t.set("train.learning_rate", rate, None, f"the default of {t.origin}")
    if t.trainer == "grpo":
        return
    steps = t.key("gradient_accumulation_steps")
    if steps is not None:
        t.set("train.gradient_accumulation_steps", steps.value, steps)
        return
    rows_at_a_time = t.get("per_device_train_batch_size")
    if isinstance(rows_at_a_time, int) and rows_at_a_time > 0:
        count = max(1, math.ceil(16 / rows_at_a_time / t.processes))
        why = f"the default of {t.origin}: a step of 16 rows of all processes"
        t.set("train.gradient_accumulation_steps", count, None, why)


def evaluation(t: Translation) -> None:
    """Write the share that is held out, and when it is scored: as often as it is saved."""
    share, key = t.get("split_dataset_ratio"), t.key("split_dataset_ratio")
    held = float(share) if isinstance(share, int | float) and 0 < share < 1 else None
    asked = t.key("eval_strategy")
    if held is not None and asked is not None and asked.value in ("no", False):
        t.note("none", key, "nothing is held out where nothing is scored", block="evaluate")
        held = None
    if held is None and asked is not None and asked.value not in ("no", False):
        what = "nothing is held out"  # sft_args.py: eval_strategy is 'no' then
        for unused in (asked, t.key("eval_steps")):
            if unused is not None:
                t.note("none", unused, what, block="evaluate")
        return
    arguments.evaluation(t, holdout=held, key=key)
    if held is None:
        return
    what = "held out is the share rounded down; here it is rounded to the nearest number of rows"
    t.note("logging", key, what, block="evaluate")
    if asked is None:
        strategy = str(t.get("save_strategy"))
        t.set("evaluate.eval_strategy", strategy, None, "as ms-swift does: when it is saved")
        every = t.key("eval_steps") or t.key("save_steps")
        if strategy == "steps" and every is not None:
            t.set("evaluate.eval_steps", arguments.number(every.value), every)


def kind_of_weights(t: Translation) -> str:
    """Return the type of the weights: as stated, or the checkpoint's, where that is known."""
    if (key := t.key("torch_dtype")) is not None:
        return str(key.value)
    known = ends_of(str(t.draft.get("model.path") or ""))
    return known.dtype if known is not None else ""


def precision(t: Translation) -> None:
    """Write the type of the weights, which decides whether autocast is on."""
    key, bf16, kind = t.key("torch_dtype"), t.key("bf16"), kind_of_weights(t)
    if not kind:
        what = "the type of the checkpoint's weights; --anyway takes float32"
        t.note("decide", "torch_dtype", what, block="model", missing="dtype auto")
        return
    t.set("model.dtype", weights.named(kind), key, "" if key else "the type of the checkpoint")
    fp16 = t.key("fp16")
    off = [key is not None and key.value is False for key in (fp16, bf16)]
    if kind == "bfloat16" or (bf16 is not None and bf16.value is True):
        has_autocast = not off[1]
    else:  # model_args.py, _init_mixed_precision: float16 where neither flag says otherwise
        has_autocast = False
        if not off[0]:
            t.note("decide", key, "training in float16 with a loss scale", missing="float16")
    chosen = bf16 or key
    t.set("train.bf16", has_autocast, chosen, "" if chosen else "follows from the weights' type")
    sharded: Key | None = t.configuration.keys.get("deepspeed") or t.configuration.keys.get("fsdp")
    weights.weights_of_full(t, sharded)


def length(t: Translation) -> None:
    """Write the longest row: a longer one is left out, unless it is to be cut."""
    longest, rule, packing = t.key("max_length"), t.key("truncation_strategy"), t.key("packing")
    lazy = t.key("lazy_tokenize")
    known = ends_of(str(t.draft.get("model.path") or ""))
    if longest is not None:
        t.set("train.max_length", longest.value, longest)
    elif known is not None and known.positions:
        why = f"the default of {t.origin}: what the model can take"
        t.set("train.max_length", known.positions, None, why)
    else:
        what = "the longest row is what the model can take; write max_length"
        t.note("decide", "max_length", what, block="train", missing="max_length not stated")
    if lazy is not None and lazy.value is True:
        full_length = longest is None
        what = "when rows are encoded; one that is too long would be replaced by another there"
        t.note("none" if full_length else "decide", lazy, what, missing="lazy_tokenize")
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
