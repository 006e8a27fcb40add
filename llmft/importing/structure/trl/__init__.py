"""TRL: which trainer, which adapter, which loss; `data` has the rows, `rollouts` the sampling."""

from __future__ import annotations

from typing import Any

from llmft.importing.peer_translation import Translation
from llmft.importing.structure import arguments, online, weights
from llmft.importing.structure.trl import data, rollouts
from llmft.recipes.tree import visible

ALIGNMENTS = {
    "sft": "sft",
    "dpo": "dpo",
    "orpo": "orpo",
    "reward": "reward",
    "reward_modeling": "reward",
    "kto": "kto",
    "grpo": "grpo",
    "rloo": "rloo",
    "cpo": "cpo",
    "gkd": "gkd",
}
_DPO_ONLY = ("precompute_ref_log_probs", "f_divergence_type", "label_smoothing", "loss_weights")


def structure(t: Translation) -> None:
    """Translate what several keys of TRL say together."""
    trainer = t.trainer
    if trainer not in ALIGNMENTS:
        t.stop(
            None,
            f"there is no alignment like TRL's '{visible(trainer)[:60]}' yet",
            f"trainer {visible(trainer)[:60]}",
        )
        return
    t.trainer = trainer = "reward" if trainer == "reward_modeling" else trainer
    arguments.value(t, "model.path", "model_name_or_path")
    adapter(t)
    t.method("alignment", ALIGNMENTS[trainer])
    loss(t)
    data.rows(t)
    data.end_of_text(t)
    data.learnt_ends(t)
    arguments.training_arguments(t)
    arguments.evaluation(t, split=_test_split(t), key=t.key("dataset_test_split"))
    precision(t)
    weights.attention(t)
    length(t)
    if trainer in online.METHODS:
        rollouts.step(t)


def adapter(t: Translation) -> None:
    """Write LoRA, its QLoRA and DoRA forms, or full fine-tuning."""
    key = t.key("use_peft")
    four, eight = t.get("load_in_4bit"), t.get("load_in_8bit")
    lora = (
        "lora_r",
        "lora_alpha",
        "lora_dropout",
        "lora_target_modules",
        "lora_modules_to_save",
        "lora_target_parameters",
        "use_rslora",
        "use_dora",
    )
    if not t.get("use_peft"):
        weights.full(t, key, "" if key else f"the default of {t.origin}")
        for name in (
            *lora,
            "load_in_4bit",
            "load_in_8bit",
            "bnb_4bit_quant_type",
            "use_bnb_nested_quant",
        ):
            if (found := t.key(name)) is not None and found.value is not False:
                if name.startswith("load_in"):
                    t.note("cannot", found, "training all weights of a quantised base")
                else:
                    t.note("none", found, "without use_peft no adapter is trained", block="adapter")
        return
    method = "dora" if t.get("use_dora") else "qlora" if four else "lora"
    if t.get("use_dora") and four:
        t.note("cannot", t.key("use_dora"), "DoRA on a base of 4 bits")
    chosen = t.key("use_dora") if method == "dora" else t.key("load_in_4bit") if four else key
    t.method("adapter", method, chosen)
    for home, name in (
        ("r", "lora_r"),
        ("lora_alpha", "lora_alpha"),
        ("lora_dropout", "lora_dropout"),
    ):
        arguments.value(t, f"adapter.{home}", name)
    weights.targets(t, "lora_target_modules")
    if (saved := t.key("lora_modules_to_save")) is not None:
        listed = saved.value if isinstance(saved.value, list) else [saved.value]
        t.set("adapter.modules_to_save", listed, saved)
    if (found := t.key("lora_target_parameters")) is not None and found.value:
        t.set("adapter.target_parameters", found.value, found)
    if rslora := t.key("use_rslora"):
        t.set("adapter.use_rslora", rslora.value, rslora)
    t.key("use_dora")
    if eight and not four:
        t.set("model.quantization.load_in_8bit", True, t.key("load_in_8bit"))
    if four:
        arguments.value(t, "adapter.bnb_4bit_quant_type", "bnb_4bit_quant_type")
        arguments.value(t, "adapter.bnb_4bit_use_double_quant", "use_bnb_nested_quant")
        compute = str(t.get("dtype") or t.get("torch_dtype") or "float32")
        if compute in ("float32", "bfloat16", "float16"):
            t.set("adapter.bnb_4bit_compute_dtype", compute, t.key("dtype") or t.key("torch_dtype"))
    # TRL 0.19 does so of 4 bits only (peft_module_casting_to_bf16), 1.16 of 8 bits too.
    if four or (eight and t.table.peer == "trl"):
        chosen = t.key("load_in_4bit") if four else t.key("load_in_8bit")
        why = f"{t.table.title} trains the adapter of a quantised base in bfloat16"
        weights.adapter_in_bfloat16(t, chosen, why)


def loss(t: Translation) -> None:
    """Write the loss and its coefficients."""
    trainer = t.trainer
    kind, key = t.get("loss_type"), t.key("loss_type")
    dropout = t.key("disable_dropout")
    if trainer == "dpo":
        if key is not None:
            names = kind if isinstance(kind, list) else [kind]
            t.set("alignment.loss_type", [str(name) for name in names], key)
        arguments.value(t, "alignment.beta", "beta")
    elif trainer == "orpo":
        arguments.value(t, "alignment.beta", "beta")
        t.set(
            "alignment.learn_prompt", True, None, "TRL's ORPO computes the loss on the prompt too"
        )
    elif trainer == "cpo":
        arguments.value(t, "alignment.beta", "beta")
        for name in ("loss_type", "cpo_alpha", "simpo_gamma", "label_smoothing"):
            if (found := t.key(name)) is not None:
                t.set(f"alignment.{name}", found.value, found)
    elif trainer == "kto":
        arguments.value(t, "alignment.beta", "beta")
        if key is not None and kind != "kto":
            t.set("alignment.loss_type", kind, key)
        if t.table.peer == "trl":
            t.note(
                "none",
                None,
                "TRL's KTO estimates the KL divergence by another answer of the same batch; here it"
                " is the answer of the row before",
                block="alignment",
            )
    elif trainer == "sft" and key is not None:
        if kind == "nll":
            t.note("none", key, "the loss of sft", block="alignment")
        elif kind == "dft":
            t.set("alignment.loss_type", "dft", key)
        else:
            t.note(
                "cannot",
                key,
                f"sft with the loss '{visible(str(kind))[:40]}'",
                missing=f"sft loss {visible(str(kind))[:40]}",
            )
    elif trainer == "gkd":
        teacher(t)
    if dropout is not None:
        t.set("alignment.disable_dropout", dropout.value, dropout)
    if trainer in online.METHODS:
        rollouts.sampled(t)


def teacher(t: Translation) -> None:
    """Write the teacher, who writes the answers, and the divergence.

    TRL 1.16, examples/scripts/gkd.py: the teacher has the model's revision, type and bits. Its
    GKDTrainer draws one writer for a batch, and divides no logit by the temperature of sampling.
    """
    kind = t.key("dtype") or t.key("torch_dtype")
    said = str(kind.value if kind else t.get("dtype") or "float32")
    block: dict[str, Any] = {"path": str(t.get("teacher_model_name_or_path") or "")}
    if (revision := t.get("model_revision")) not in (None, "main"):
        block["revision"] = revision
    block["dtype"] = "auto" if said == "null" else weights.named(said)
    for name in ("load_in_4bit", "load_in_8bit"):
        if t.get(name) is True:
            block["quantization"] = {name: True}
    if block["path"]:
        t.set("alignment.teacher", block, t.key("teacher_model_name_or_path"))
    else:
        t.note("cannot", "teacher_model_name_or_path", "no key names it", missing="no teacher")
    names = ["lmbda", "seq_kd", "beta"]
    if t.get("lmbda") or t.get("seq_kd"):
        names += ["temperature", "max_new_tokens"]
    for name in names:
        arguments.value(t, f"alignment.{name}", name)


def _test_split(t: Translation) -> str:
    return str(t.get("dataset_test_split") or "test")


def precision(t: Translation) -> None:
    """Write the type of the weights, and whether the computation is in bfloat16 (autocast)."""
    key = t.key("dtype") or t.key("torch_dtype")
    kind = str(key.value) if key else str(t.get("dtype") or "float32")
    weights.dtype(t, "auto" if kind == "null" else kind, key)
    bf16 = t.key("bf16")
    value: Any = t.get("bf16")
    if value is None:
        t.note(
            "decide",
            "bf16",
            "it depends on the version whether bfloat16 is the default; --anyway takes true",
            block="train",
            missing="bf16 not stated",
        )
        value = True
    why = "" if bf16 else f"the default of {t.origin}"
    t.set("train.bf16", value is True, bf16, why)
    sharded = t.key("deepspeed") or t.key("fsdp") or t.key("accelerate_config")
    if "deepspeed" in t.configuration.launcher or "fsdp" in t.configuration.launcher:
        sharded = key
    weights.weights_of_full(t, sharded)


def length(t: Translation) -> None:
    """Write the longest row, and what happens to a longer one."""
    key = t.key("max_length") or t.key("max_seq_length")
    if t.trainer in online.METHODS:
        if (found := t.key("max_prompt_length")) is not None:
            t.note("cannot", found, "prompts cut by themselves", missing="max_prompt_length")
        return
    longest = key.value if key else t.get("max_length")
    why = "" if key else f"the default of {t.origin}"
    if isinstance(longest, int):
        t.set("train.max_length", longest, key, why)
    found, of_prompt = t.key("max_prompt_length"), t.get("max_prompt_length")
    if t.table.peer == "alignment-handbook" and t.trainer == "dpo":
        # TRL 0.19, DPOTrainer.tokenize_row: the prompt's last tokens, 512 where nothing is said.
        if isinstance(of_prompt, int):
            why = "" if found else f"the default of {t.origin}"
            t.set("train.max_prompt_length", of_prompt, found, why)
    elif found is not None:
        t.note("cannot", found, "prompts cut by themselves", missing="max_prompt_length")
    mode = t.get("truncation_mode")
    if t.trainer == "sft":
        if mode == "keep_start":
            t.set("train.on_long_row", "truncate", t.key("truncation_mode"))
        else:
            t.note(
                "cannot",
                t.key("truncation_mode"),
                "rows cut at their start",
                missing="truncation_mode keep_end",
            )
        packing(t)
        return
    t.key("truncation_mode")
    one = "row" if t.trainer == "gkd" else "pair"
    t.set(
        "train.on_long_row",
        "fail",
        None,
        f"{t.table.title} cuts a longer {one} in another way, so it is refused here",
    )


def packing(t: Translation) -> None:
    """Write packing: rows share a row of the batch, whole or, of plain text, cut."""
    key, strategy = t.key("packing"), t.get("packing_strategy")
    strategy_key = t.key("packing_strategy")
    if not t.get("packing"):
        if strategy_key is not None:
            t.note("none", strategy_key, "it acts with packing only", block="train")
        return
    kind = t.key("attn_implementation")
    if strategy in ("wrapped", "bfd_split"):
        if t.draft.get("data.columns.text") is None:
            t.note(
                "cannot",
                strategy_key,
                "conversations and prompts are not cut: of plain text alone a part is a text",
                missing="packing by cutting conversations",
            )
            return
        t.set("train.on_long_row", "split", strategy_key)
    elif strategy != "bfd":
        t.note("decide", strategy_key, f"{t.table.title} has no such strategy")
        return
    if strategy == "wrapped":
        # TRL 1.16: pack_dataset gives no seq_lengths, so a chunk is one row to every attention.
        t.set("train.packing_strategy", "wrapped", strategy_key)
        t.set("train.cross_document_attention", True, strategy_key)
    elif kind is None or "flash" not in str(kind.value):
        t.note(
            "decide",
            key,
            f"without FlashAttention packed rows see each other in {t.table.title}; never here",
            block="train",
            missing="packed rows that see each other",
        )
    t.set("train.packing", True, key)
    t.note("speed", key, "which rows are packed together differs", block="train")
