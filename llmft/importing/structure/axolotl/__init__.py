"""Axolotl: what is optimised and trained, and in which precision."""

from __future__ import annotations

import re
from typing import Any

from llmft.importing.configuration import Key, as_bool
from llmft.importing.peer_translation import Translation
from llmft.importing.structure import arguments, weights
from llmft.importing.structure.axolotl import data, steps
from llmft.recipes.tree import visible
from llmft.system.architectures import ENDS

_ALIGNMENTS = {
    "dpo": "dpo",
    "ipo": "dpo",
    "orpo": "orpo",
    "kto": "kto",
    "simpo": "cpo",
    "grpo": "grpo",
}


def structure(t: Translation) -> None:
    """Translate what several keys of Axolotl say together."""
    arguments.value(t, "model.path", "base_model")
    config = t.key("base_model_config")
    if config is not None and config.value != t.get("base_model"):
        t.note("cannot", config, "the config of another model", missing="base_model_config")
    routers = t.key("model_config.output_router_logits")
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
    if routers is not None and routers.value is True:
        if t.trainer == "sft":
            t.set("alignment.router_aux_loss_coef", "config", routers)
        else:
            t.note("cannot", routers, "a loss on the routers", missing="a loss on the routers")
    elif routers is not None:
        t.note("decide", routers, "whether there is a loss on the routers")
    adapter(t)
    data.rows(t)
    steps.batches(t)
    steps.schedule(t)
    arguments.value(t, "train.weight_decay", "weight_decay")
    arguments.checkpointing(t)
    steps.saving(t)
    arguments.noise(t)
    steps.evaluation(t)
    steps.watchdog(t)
    rope(t)
    precision(t)
    kind_of_attention = weights.attention(t)
    data.length(t)
    data.packing(t, kind_of_attention)
    data.template(t)
    data.tokens(t)
    reporting(t)
    workers = t.key("ray_num_workers")
    if workers is not None and isinstance(workers.value, int):
        if as_bool(t.configuration.get("use_ray")) is True:
            t.processes = max(t.processes, workers.value)
        t.note("none", workers, "the number of processes is said above, with use_ray")


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
    if name in ("ipo", "simpo"):
        t.trainer = "dpo" if name == "ipo" else "cpo"
    t.method("alignment", _ALIGNMENTS.get(name, "reward"), rl or reward)
    beta = (
        t.key("rl_beta") or t.key("dpo_beta") or (t.key("orpo_alpha") if name == "orpo" else None)
    )
    if name in ("dpo", "ipo", "orpo", "kto", "simpo"):
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
    if name == "simpo":
        t.set("alignment.loss_type", "simpo", rl)
        for theirs in ("simpo_gamma", "cpo_alpha"):
            if (key := t.key(theirs)) is not None:
                t.set(f"alignment.{theirs}", key.value, key)
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
    part = t.key("unfrozen_parameters")
    if part is not None and part.value:
        part_of_the_base(t, part, bool(name))
    if not name:
        weights.full(t, key, "no adapter is named: all weights are trained")
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
        if not arguments.value(t, f"adapter.{home}", theirs) and home != "lora_dropout":
            t.note("decide", theirs, "Axolotl needs it", missing=f"{theirs} not stated")
    linear, modules = t.key("lora_target_linear"), t.key("lora_target_modules")
    if linear is not None and linear.value is True:
        named = modules.value if modules is not None else None
        # Axolotl 0.19, loaders/adapter.py: both, and no output layer among the linear ones.
        ends = [n for n in named if n in ENDS] if isinstance(named, list) else []
        t.set("adapter.target_modules", ["all-linear", *ends] if ends else "all-linear", linear)
        if modules is not None:
            t.note("none", modules, "lora_target_linear takes every linear layer", block="adapter")
    else:
        weights.targets(t, "lora_target_modules")
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
    token_rows(t)
    if four:
        why = f"the default of {t.origin}"
        t.set("adapter.bnb_4bit_quant_type", "nf4", None, why)
        t.set("adapter.bnb_4bit_use_double_quant", True, None, why)
    elif eight:
        t.set("model.quantization.load_in_8bit", True, t.key("load_in_8bit"))
    if four and eight:
        t.note("decide", t.key("load_in_8bit"), "4 and 8 bits exclude each other")


def part_of_the_base(t: Translation, key: Key, adapted: bool) -> None:
    """Write which weights are trained: those whose names begin as a pattern says.

    Axolotl 0.18, utils/freeze.py: re.match with the dots as dots, so that `.*` at the end is
    nothing but the end. With an adapter no name begins so any more, for PEFT's wrapper goes before.
    """
    listed = key.value if isinstance(key.value, list) else [key.value]
    stems = [str(one).removeprefix("^").removesuffix(".*").rstrip(".") for one in listed]
    plain = all(re.fullmatch(r"[\w.]+", stem) for stem in stems)
    if adapted or not plain:
        what = "training a part of the base"
        t.note("cannot", key, what, missing=what)
        return
    found = [stem for stem in stems if re.match(r"model\.|lm_head|transformer\.", stem)]
    for other in [stem for stem in stems if stem not in found]:
        t.note("none", None, f"no weight's name begins with '{other}'", block="adapter")
    weights.full(t, None, "no adapter is named")
    t.set("adapter.trainable_parameters", [f"{stem}*" for stem in found], key)


def token_rows(t: Translation) -> None:
    """Write whose tokens' rows are trained: PEFT's trainable_token_indices."""
    name = "peft_trainable_token_indices"
    keys = {inner: t.key(f"{name}.{inner}") for inner in t.configuration.under(name)}
    whole = t.key(name)
    found = [key for key in (whole, *keys.values()) if key is not None and key.value]
    if not found:
        return
    lists = [key.value if isinstance(key.value, list) else [key.value] for key in found]
    t.set("adapter.trainable_token_indices", lists[0], found[0])
    both = len(keys) == 2 and {"embed_tokens", "lm_head"} == set(keys)
    if not both or any(one != lists[0] for one in lists):
        # PEFT 0.19, LoraConfig: a list is about the embedding; an output layer tied to it follows.
        what = "here the rows of an output layer with weights of its own are trained too"
        t.note("decide", found[0], what, block="adapter", missing="rows of the embedding alone")


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
        why = "where a GPU has none, Axolotl takes float16, and here there is no autocast"
        t.set("train.bf16", "auto", said, why if said else f"the default of {t.origin}: {why}")
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
    weights.weights_of_full(t, sharding)


_TRACKED = {
    "mlflow": {"experiment_name": "mlflow_experiment_name", "run_name": "mlflow_run_name"},
    "swanlab": {
        "project": "swanlab_project", "workspace": "swanlab_workspace",
        "experiment_name": "swanlab_experiment_name", "mode": "swanlab_mode",
    },
    "trackio": {"project": "trackio_project_name", "name": "trackio_run_name"},
}  # fmt: skip


def reporting(t: Translation) -> None:
    """Write the trackers: Axolotl reports to wandb and to MLflow where a project is named."""
    project, entity = t.key("wandb_project"), t.key("wandb_entity")
    uri = t.key("mlflow_tracking_uri")
    asked = {
        "wandb": _on(t, "wandb_project") or _on(t, "use_wandb"),
        "mlflow": _on(t, "mlflow_experiment_name") or _on(t, "use_mlflow") or _on(
            t, "mlflow_tracking_uri"
        ),
        "swanlab": _on(t, "use_swanlab"),
        "trackio": _on(t, "use_trackio") or _on(t, "trackio_project_name"),
        "tensorboard": _on(t, "use_tensorboard"),
    }  # fmt: skip
    wanted = {name: key for name, key in asked.items() if key is not None}
    settings = arguments.tracker_settings(t, _TRACKED, wanted)
    if wanted:
        arguments.use_trackers(t, list(wanted), next(iter(wanted.values())), settings)
        if project is not None and "wandb" in wanted:
            t.note("logging", project, "the tracker's project is set at the tracker here")
    if uri is not None and uri.value:
        t.note("logging", uri, "no recipe names a tracker's server: set MLFLOW_TRACKING_URI")
    if entity is not None and entity.value:
        t.note("none", entity, "the user or team at a tracker")


_ROPE = "overrides_of_model_config.rope_scaling"


def rope(t: Translation) -> None:
    """Write how rotary positions are stretched, which Axolotl puts into the model's config."""
    for name in t.configuration.under(_ROPE):
        key = t.key(f"{_ROPE}.{name}")
        ours = "rope_type" if name == "type" else name
        if key is not None and not t.set(f"model.rope_scaling.{ours}", key.value, key):
            t.note("cannot", key, f"rope scaling by {visible(name)[:40]}", missing="rope scaling")


def _on(t: Translation, name: str) -> Key | None:
    """Return a key that asks for a tracker: by true, or by a text."""
    key = t.key(name)
    said = key is not None and (key.value is True or (isinstance(key.value, str) and key.value))
    return key if said else None
