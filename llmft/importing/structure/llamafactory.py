"""LLaMA-Factory: stage, adapter, data sets by dataset_info.json, templates."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from llmft.api.errors import RecipeError
from llmft.importing.configuration import Key, as_bool
from llmft.importing.peer_translation import Translation
from llmft.importing.structure import arguments, forms, weights
from llmft.importing.tables import known_templates, registered_rows
from llmft.recipes.textfile import read_text
from llmft.recipes.tree import visible

_STAGES = {"sft": "sft", "dpo": "dpo", "rm": "reward", "kto": "kto", "pt": "sft"}
_SWANLAB = {
    "project": "swanlab_project", "workspace": "swanlab_workspace",
    "experiment_name": "swanlab_run_name", "mode": "swanlab_mode",
}  # fmt: skip
_PREFERENCES = ("sigmoid", "hinge", "ipo")
INFO = "dataset_info.json"


def structure(t: Translation) -> None:
    """Translate what several keys of LLaMA-Factory say together."""
    arguments.value(t, "model.path", "model_name_or_path")
    stage(t)
    if t.stopped:
        return
    adapter(t)
    rows(t)
    t.key("packing"), t.key("neat_packing")
    if t.get("stage") != "pt":
        template(t)
    arguments.training_arguments(t)
    reporting(t)
    evaluation(t)
    precision(t)
    weights.attention(t, "flash_attn")
    if t.get("stage") == "pt":
        documents(t)
    else:
        packing(t)
    workers = t.key("ray_num_workers")
    if workers is not None and isinstance(workers.value, int):
        t.processes = max(t.processes, workers.value)
        t.note("none", workers, "the number of processes is said above")


def reporting(t: Translation) -> None:
    """Write SwanLab's tracker beside those of `report_to`: LLaMA-Factory has a switch for it."""
    use, said = t.key("use_swanlab"), t.key("report_to")
    wanted = ["swanlab"] if use is not None and use.value is True else []
    settings = arguments.tracker_settings(t, {"swanlab": _SWANLAB}, wanted)
    if use is None or not wanted:
        return
    beside = said.value if said is not None else []
    beside = beside if isinstance(beside, list) else str(beside).split(",")
    known = t.schema.registry.names("tracker")
    names = [str(one).strip() for one in beside if str(one).strip() in known]
    arguments.use_trackers(t, [*names, *wanted], use, settings)


def stage(t: Translation) -> None:
    """Choose what is optimised."""
    name, key = str(t.get("stage")), t.key("stage")
    loss, loss_key = str(t.get("pref_loss")), t.key("pref_loss")
    if name not in _STAGES:
        what = f"the stage '{visible(name)[:40]}' cannot be imported yet"
        t.stop(key, what, f"stage {visible(name)[:40]}")
        return
    t.trainer = _STAGES[name]
    if name == "dpo" and loss == "orpo":
        t.trainer = "orpo"
        t.method("alignment", "orpo", loss_key)
        arguments.value(t, "alignment.beta", "pref_beta")
        return
    t.method("alignment", t.trainer, key)
    if (dft := t.key("use_dft_loss")) is not None and dft.value is True:
        t.set("alignment.loss_type", "dft", dft)
    if name == "dpo":
        if loss in _PREFERENCES:
            t.set(
                "alignment.loss_type",
                [loss],
                loss_key,
                "" if loss_key else f"the default of {t.origin}",
            )
        else:
            t.note(
                "cannot",
                loss_key,
                f"the loss '{visible(loss)[:40]}'",
                missing=f"pref_loss {loss[:40]}",
            )
        arguments.value(t, "alignment.beta", "pref_beta")
        if (smoothing := t.key("dpo_label_smoothing")) is not None:
            t.set("alignment.label_smoothing", smoothing.value, smoothing)
    elif name == "kto":
        arguments.value(t, "alignment.beta", "pref_beta")
        arguments.value(t, "alignment.desirable_weight", "kto_chosen_weight")
        arguments.value(t, "alignment.undesirable_weight", "kto_rejected_weight")
    for other in ("pref_beta", "pref_loss"):
        if (unused := t.key(other)) is not None and name in ("sft", "rm"):
            t.note("none", unused, f"stage: {name} does not read it", block="alignment")
    if name == "rm":
        t.note(
            "decide",
            key,
            "LLaMA-Factory's head has a bias and a dropout; here it has neither",
            block="alignment",
            missing="the head of a reward model",
        )


def adapter(t: Translation) -> None:
    """Write LoRA with its forms, or full fine-tuning."""
    kind, key = str(t.get("finetuning_type")), t.key("finetuning_type")
    lora = ("lora_rank", "lora_alpha", "lora_dropout", "lora_target", "additional_target")
    bits, bits_key = t.get("quantization_bit"), t.key("quantization_bit")
    method = t.key("quantization_method")
    if method is not None and str(method.value).lower() not in ("bnb", "bitsandbytes"):
        t.note(
            "cannot",
            method,
            f"a base stored by {visible(str(method.value))[:20]}",
            missing="bases stored by another method than bitsandbytes",
        )
    if kind == "full":
        weights.full(t, key)
        if t.get("pure_bf16") is True:
            t.set("adapter.pure_bf16", True, t.key("pure_bf16"))
        for name in lora:
            if (unused := t.key(name)) is not None:
                t.note("none", unused, "no adapter is trained", block="adapter")
        if bits:
            t.note("cannot", bits_key, "training all weights of a quantised base")
        return
    if kind == "oft":
        orthogonal(t, key, bits_key)
        return
    if kind != "lora":
        t.note(
            "cannot",
            key,
            f"finetuning_type '{visible(kind)[:40]}'",
            missing=f"finetuning_type {visible(kind)[:40]}",
        )
        return
    dora = t.key("use_dora")
    uses_dora = dora is not None and dora.value is True
    four = bits == 4
    if uses_dora and four:
        t.note("cannot", dora, "DoRA on a base of 4 bits")
    chosen = dora if uses_dora else bits_key if four else key
    why = "" if chosen else f"the default of {t.origin}"
    t.method("adapter", "dora" if uses_dora else "qlora" if four else "lora", chosen, why)
    pure = t.key("pure_bf16")
    if pure is not None and pure.value is True:
        # LLaMA-Factory 0.9.6, model/adapter.py: get_peft_model's autocast_adapter_dtype is left
        # at true, but with KTransformers.
        if t.configuration.get("use_kt") is True:
            weights.adapter_in_bfloat16(t, pure, "the adapter has the type of the base")
        else:
            t.note("none", pure, "PEFT keeps an adapter's own weights in float32", block="adapter")
    arguments.value(t, "adapter.r", "lora_rank")
    alpha, rank = t.key("lora_alpha"), t.get("lora_rank")
    if alpha is not None:
        t.set("adapter.lora_alpha", alpha.value, alpha)
    elif isinstance(rank, int):
        t.set("adapter.lora_alpha", 2 * rank, None, f"the default of {t.origin}: twice lora_rank")
    arguments.value(t, "adapter.lora_dropout", "lora_dropout")
    target = t.key("lora_target")
    if target is None:
        t.set("adapter.target_modules", "all-linear", None, f"the default of {t.origin}: all")
    else:
        weights.targets(t, "lora_target", every=("all", "all-linear"))
    if (more := t.key("additional_target")) is not None:
        listed = (
            [one.strip() for one in str(more.value).split(",")]
            if isinstance(more.value, str)
            else more.value
        )
        t.set("adapter.modules_to_save", listed, more)
    for home, name in (("use_rslora", "use_rslora"), ("loraplus_lr_ratio", "loraplus_lr_ratio")):
        if (found := t.key(name)) is not None:
            t.set(f"adapter.{home}", found.value, found)
    pissa = t.key("pissa_init")
    rounds = t.get("pissa_iter")
    if pissa is not None and pissa.value is True:
        t.set(
            "adapter.init_lora_weights", f"pissa_niter_{rounds}" if rounds != -1 else "pissa", pissa
        )
    elif (unused := t.key("pissa_iter")) is not None:
        t.note("none", unused, "acts with pissa_init only", block="adapter")
    if four:
        arguments.value(t, "adapter.bnb_4bit_quant_type", "quantization_type")
        arguments.value(t, "adapter.bnb_4bit_use_double_quant", "double_quantization")
    elif bits == 8:
        t.set("model.quantization.load_in_8bit", True, bits_key)
    elif bits:
        t.note("cannot", bits_key, f"a base of {bits} bits")


def orthogonal(t: Translation, key: Key | None, bits: Key | None) -> None:
    """Write OFT: PEFT's, of blocks of one size; its layers are those of lora_target.

    LLaMA-Factory 0.9.6, model/adapter.py: OFTConfig(r, oft_block_size, target_modules,
    module_dropout, modules_to_save).
    """
    t.method("adapter", "oft", key)
    arguments.value(t, "adapter.oft_block_size", "oft_block_size")
    target = t.key("lora_target")
    if target is None:
        t.set("adapter.target_modules", "all-linear", None, f"the default of {t.origin}: all")
    else:
        weights.targets(t, "lora_target", every=("all", "all-linear"))
    if (other := t.key("oft_target")) is not None:
        t.note("none", other, "LLaMA-Factory reads lora_target of this adapter too")
    for name in ("oft_rank", "module_dropout"):
        if (found := t.key(name)) is not None and found.value:
            t.note("cannot", found, f"OFT with {name}", missing=f"OFT with {name}")
    if bits is not None and bits.value:
        t.note("cannot", bits, "OFT on a quantised base", missing="OFT on a quantised base")
    for name in ("lora_rank", "lora_alpha", "lora_dropout", "use_dora", "use_rslora"):
        if (unused := t.key(name)) is not None:
            t.note("none", unused, "OFT does not read it", block="adapter")


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


def template(t: Translation) -> None:
    """Write LLaMA-Factory's template, where its text is known; it is not the model's own."""
    key, system, thinking = t.key("template"), t.key("default_system"), t.key("enable_thinking")
    if system is not None:
        t.set("data.system", system.value, system)
    if thinking is not None:
        t.note(
            "decide",
            thinking,
            "how thinking is put into rows that have none",
            missing="enable_thinking",
        )
    if key is None:
        t.note(
            "decide",
            "template",
            "LLaMA-Factory takes its template 'empty' or the tokenizer's",
            block="model",
            missing="template not stated",
        )
        return
    known = known_templates("llamafactory").get(str(key.value))
    if known is not None and key.value == "qwen3" and t.draft.get("data.learn") == "last":
        known = None  # with mask_history it takes the thoughts out of earlier turns
    if known is not None:
        why = "as LLaMA-Factory writes it; the model's own template may differ"
        t.set("model.chat_template", known.text, key, why)
        t.set("model.stop", [known.end], None, f"what ends an answer in '{key.value}'")
        if known.learn_end != "stop":
            why = "LLaMA-Factory learns the line break after an answer too"
            t.set("model.learn_template", known.learn_end, None, why)
        return
    t.note(
        "decide",
        key,
        "LLaMA-Factory's own template may differ from the model's, in a default"
        " system text or by a line break that it learns after an answer; --anyway takes the"
        " model's",
        block="model",
        missing=f"template {visible(str(key.value))[:40]}",
    )


def evaluation(t: Translation) -> None:
    """Write which rows are held out and when they are scored."""
    size, key = t.get("val_size"), t.key("val_size")
    other = t.key("eval_dataset")
    patience = t.key("early_stopping_steps")
    best = t.get("load_best_model_at_end") is True or patience is not None
    if other is not None:
        t.note(
            "cannot" if best else "logging",
            other,
            "another data set is scored on",
            missing="evaluation on another data set",
        )
    held = arguments.held_out(size)
    arguments.evaluation(t, holdout=held or None, key=key)
    if patience is not None:
        t.set("evaluate.early_stopping_patience", patience.value, patience)


def precision(t: Translation) -> None:
    """Write the type of the weights and of the computation; trained weights are float32."""
    key, pure = t.key("bf16"), t.get("pure_bf16")
    bf16 = t.get("bf16") is True
    if bf16 or pure is True:
        t.set("model.dtype", "bfloat16", key or t.key("pure_bf16"))
        t.set("train.bf16", bf16, key)
    else:
        t.set("model.dtype", "auto", key, "without bf16 the base keeps the checkpoint's type")
    off = t.key("disable_gradient_checkpointing")
    t.set(
        "train.gradient_checkpointing",
        not (off is not None and off.value is True),
        off,
        "" if off else f"the default of {t.origin}",
    )


def documents(t: Translation) -> None:
    """Write documents that are joined and cut to rows of cutoff_len, or are a row each.

    LLaMA-Factory 0.9.6, data/processor/pretrain.py and hparams/parser.py: joined unless `packing`
    says no; of each thousand documents the last tokens, less than a row, are left out; where the
    tokenizer puts a BOS token before texts, it takes the place of each row's first token.
    """
    packed, neat = t.key("packing"), t.key("neat_packing")
    for name in (
        "template",
        "default_system",
        "enable_thinking",
        "train_on_prompt",
        "mask_history",
    ):
        if (unused := t.key(name)) is not None:
            t.note("none", unused, "stage: pt writes texts as they stand", block="data")
    if neat is not None and neat.value is True:
        t.note(
            "decide", neat, "joined documents that do not see each other", missing="neat_packing"
        )
    what = (
        "transformers 5.6, as LLaMA-Factory pins it, divides a step's loss by all tokens of its"
        " rows, the first ones too, which are never predicted"
    )
    t.note("logging", t.key("stage"), what, block="train")
    if packed is not None and packed.value is False:
        t.set("train.on_long_row", "truncate", packed)
        return
    why = "" if packed else f"{t.table.title} joins documents in stage: pt"
    t.set("train.packing", True, packed, why)
    t.set("train.packing_strategy", "wrapped", None, "cut where cutoff_len is reached")
    t.set("train.cross_document_attention", True, None, "a row is one text to its attention")
    what = (
        "the last tokens of each thousand documents are left out there, and a BOS token, where the"
        " tokenizer has one before texts, is put over each row's first token and before no document"
    )
    t.note("decide", t.key("stage"), what, block="train", missing="documents cut and joined")


def packing(t: Translation) -> None:
    """Write packing, where packed rows do not see each other (neat_packing)."""
    key, neat = t.key("packing"), t.key("neat_packing")
    if neat is not None and neat.value is True:
        t.set("train.packing", True, neat)
        t.note("speed", neat, "which rows are packed together differs", block="train")
        if key is not None:
            t.note("none", key, "neat_packing goes before", block="train")
    elif key is not None and key.value is True:
        t.note(
            "decide",
            key,
            "without neat_packing packed rows see each other; here they never do",
            missing="packed rows that see each other",
        )
        t.set("train.packing", True, key)
