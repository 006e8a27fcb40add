"""LLaMA-Factory: stage, adapter, template, precision; `data` has the rows."""

from __future__ import annotations

from llmft.importing.configuration import Key
from llmft.importing.peer_translation import Translation
from llmft.importing.structure import arguments, weights
from llmft.importing.structure.llamafactory import data
from llmft.importing.tables import known_templates
from llmft.recipes.tree import visible

_STAGES = {"sft": "sft", "dpo": "dpo", "rm": "reward", "kto": "kto", "pt": "sft"}
_SWANLAB = {
    "project": "swanlab_project", "workspace": "swanlab_workspace",
    "experiment_name": "swanlab_run_name", "mode": "swanlab_mode",
}  # fmt: skip
_PREFERENCES = ("sigmoid", "hinge", "ipo")


def structure(t: Translation) -> None:
    """Translate what several keys of LLaMA-Factory say together."""
    arguments.value(t, "model.path", "model_name_or_path")
    stage(t)
    if t.stopped:
        return
    adapter(t)
    new = t.key("create_new_adapter")
    weights.continued(t, "adapter_name_or_path", below=new is not None and new.value is True)
    data.rows(t)
    t.key("packing"), t.key("neat_packing")
    if t.get("stage") != "pt":
        template(t)
    arguments.training_arguments(t)
    muon(t)
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


def muon(t: Translation) -> None:
    """Write Muon for adapters of matrices; other tensors go to an AdamW there.

    LLaMA-Factory 0.9.6, train/trainer_utils.py and third_party/muon: momentum 0.95, and rates by
    the size of AdamW's updates, as torch.optim.Muon has them; `optim` is not read then.
    """
    key = t.key("use_muon")
    if key is None or key.value is not True:
        return
    matrices = t.draft.get("adapter.method") in ("lora", "qlora")
    if not matrices or t.draft.get("adapter.modules_to_save") or t.key("loraplus_lr_ratio"):
        t.note("cannot", key, "Muon for some of the tensors only", missing="Muon")
        return
    if (said := t.key("optim")) is not None:
        t.taken.add("optim")
        t.note("none", said, "use_muon stands in its place")
    t.set("train.optim", "muon", key)


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
