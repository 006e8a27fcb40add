"""An adapter that PEFT saved, held against a recipe's block: the same layers, ranks and scales."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from llmft.api import Refusal
from llmft_adapters.lora.ends import copies_of
from llmft_adapters.lora.token_rows import indices_of

Shapes = Mapping[str, tuple[int, ...]]
_SHOWN = 3
_SKIPPED = frozenset({
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision",
    "task_type", "peft_type",  # of the file, not of what is computed
    "fan_in_fan_out", "lora_dropout", "runtime_config",  # of the model, or of training
    "exclude_modules", "layers_pattern", "layers_to_transform", "modules_to_save", "r",
    "rank_pattern", "target_modules", "target_parameters",  # shown by the tensors
    "alpha_pattern", "lora_alpha", "use_rslora",  # shown by each layer's scale
    "init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "megatron_core", "qalora_group_size",  # read with other settings only
})  # fmt: skip
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_LAYER = re.compile(r"base_model\.model\.(.+)\.lora_(?:A|embedding_A)(?:\.weight)?")
_PLAIN_PATTERN = re.compile(r"\^?[\w.]+")


def misfits(
    adapter: Any, model: Any, settings: Mapping[str, Any], tensors: Shapes
) -> Iterable[Refusal]:
    """Yield in what PEFT's LoRA adapter is not the one that an adapter's settings describe.

    model: the base on torch's meta device.
    """
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    kind = settings.get("peft_type")
    if kind != "LORA":
        what = f"the folder holds an adapter of PEFT's type {shown(kind)}, and not LORA"
        yield ("method",), what, "name a folder of that type, or the method that makes it"
        return
    config = adapter.peft_config(model)
    with torch.device("meta"):
        attached = get_peft_model(copy.deepcopy(model), config)
        ours = get_peft_model_state_dict(attached, save_embedding_layers=False)
    wanted = {name: tuple(tensor.shape) for name, tensor in ours.items()}
    fix = f"write {block(settings, tensors)}"
    usual = LoraConfig().to_dict()
    stated = config.to_dict()
    yield from _of_the_start(adapter, settings)
    for key in sorted({*settings, *usual} - _SKIPPED):
        theirs, own = settings.get(key, usual.get(key)), stated.get(key)
        if key == "trainable_token_indices":  # which layers have them is shown by the tensors
            theirs, own = indices_of(theirs), indices_of(own)
        if theirs != own and (theirs or own):
            mine = (
                ("method",)
                if key == "use_dora" or key not in type(adapter.config).model_fields
                else (key,)
            )
            yield mine, f"the folder's {key} is {shown(theirs)}, and here it is {shown(own)}", fix
    copies = copies_of(model, tensors)
    if different := tensors_apart(wanted, {n: s for n, s in tensors.items() if n not in copies}):
        yield ("target_modules",), different, fix
        return
    yield from _scales_apart(attached, settings, tensors, fix)


def _of_the_start(adapter: Any, settings: Mapping[str, Any]) -> Iterator[Refusal]:
    key = ("init_lora_weights",)
    if adapter.config.start_in_the_base:
        what = (
            f"{adapter.config.start_in_the_base} is how a new adapter starts, and this one is there"
        )
        yield key, what, "leave init_lora_weights out"
    how = settings.get("init_lora_weights")
    if isinstance(how, str) and how.lower().startswith(_CHANGE_THE_BASE):
        what = f"the folder's adapter starts by {how[:40]}, and stands on a base that PEFT changed"
        fix = "save it again by save_pretrained(path_initial_model_for_weight_conversion=...)"
        yield key, what, fix


def tensors_apart(wanted: Shapes, found: Shapes) -> str:
    """Return which tensors only one of the two has, or has in another shape; '' if none."""
    more, less = sorted(found.keys() - wanted.keys()), sorted(wanted.keys() - found.keys())
    other = sorted(name for name in wanted.keys() & found.keys() if wanted[name] != found[name])
    parts = []
    if more:
        parts.append(
            f"the folder has {len(more)} tensors that this block does not train ({_some(more)})"
        )
    if less:
        parts.append(f"it has none for {len(less)} that this block trains ({_some(less)})")
    if other:
        one = other[0]
        parts.append(
            f"{len(other)} have another shape ({_some(other[:1])}: {list(found[one])}, here"
            f" {list(wanted[one])})"
        )
    return "; ".join(parts)


def _scales_apart(
    attached: Any, settings: Mapping[str, Any], tensors: Shapes, fix: str
) -> Iterator[Refusal]:
    """Yield where a layer's update is scaled otherwise: alpha / r, or alpha / sqrt(r)."""
    pattern = settings.get("alpha_pattern") or {}
    odd = [key for key in pattern if not _PLAIN_PATTERN.fullmatch(key)]
    if odd:
        what = f"the folder's alpha_pattern has the regular expression {shown(odd[0])}"
        yield ("alpha_pattern",), what, "save it with the layers' names in its place"
        return
    for name, shape in sorted(tensors.items()):
        if not (layer := _LAYER.fullmatch(name)):
            continue
        path, rank = layer[1], shape[0]
        alpha = _matching(pattern, path, settings.get("lora_alpha", 8))
        theirs = float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)
        module = _submodule(attached.get_base_model(), path)
        own = getattr(module, "scaling", {}).get("default")
        if own is None and hasattr(module, "base_layer"):
            own = getattr(module.base_layer, "scaling", {}).get("default")
        if own is not None and not math.isclose(own, theirs, rel_tol=1e-6):
            what = (
                f"the update of '{path}' is scaled by {theirs:g} in the folder, and by {own:g} here"
            )
            yield ("lora_alpha",), what, fix
            return


def _submodule(model: Any, path: str) -> Any:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _matching(pattern: Mapping[str, Any], path: str, usual: Any) -> Any:
    """Return the value of the first key that ends a path, as PEFT reads them."""
    for key, value in pattern.items():
        bare = key.removeprefix("^")
        if path == bare or (bare == key and path.endswith(f".{bare}")):
            return value
    return usual


def block(settings: Mapping[str, Any], tensors: Shapes) -> str:
    """Return the adapter block that describes a folder, as a recipe has it."""
    shapes = [(m[1], shape) for name, shape in tensors.items() if (m := _LAYER.fullmatch(name))]
    ranks = [shape[0] for _, shape in shapes] or [settings.get("r", 8)]
    said: dict[str, Any] = {"method": "dora" if settings.get("use_dora") is True else "lora"}
    said["r"] = max(set(ranks), key=ranks.count)
    if isinstance(alpha := settings.get("lora_alpha"), int | float):
        said["lora_alpha"] = alpha
    if settings.get("use_rslora") is True:
        said["use_rslora"] = "true"
    if settings.get("bias") in ("all", "lora_only"):
        said["bias"] = settings["bias"]
    rows = indices_of(settings.get("trainable_token_indices"))
    if isinstance(rows, list) and all(isinstance(row, int) for row in rows):
        said["trainable_token_indices"] = rows
    names = sorted({path.rpartition(".")[2] for path, _ in shapes})
    said["target_modules"] = f"[{', '.join(names)}]"
    whole = settings.get("modules_to_save")
    if isinstance(whole, list) and whole:
        kept = [str(name)[:60] for name in whole if re.fullmatch(r"[\w.]+", str(name))]
        said["modules_to_save"] = f"[{', '.join(kept)}]"
    return "adapter: {" + ", ".join(f"{key}: {value}" for key, value in said.items()) + "}"


def _some(names: list[str]) -> str:
    shown = [name.removeprefix("base_model.model.")[:120] for name in names[:_SHOWN]]
    return ", ".join(shown) + (", ..." if names[_SHOWN:] else "")


def shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
