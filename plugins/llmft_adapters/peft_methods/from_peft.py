"""An adapter that PEFT saved, held against a bridged method's block: layers, shapes, settings."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from llmft.api import Refusal
from llmft_adapters.lora.from_peft import Shapes, shown, tensors_apart

_OF_THE_FILE = frozenset({
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version",
    "revision", "runtime_config", "task_type",
})  # fmt: skip
_SHOWN_BY_TENSORS = frozenset({
    "exclude_modules", "fan_in_fan_out", "layers_pattern", "layers_to_transform",
    "modules_to_save", "target_modules",
})  # fmt: skip
_LAYER = re.compile(
    r"base_model\.model\.(.+)\.(?:base_layer\.)?"
    r"(?:ia3|vera|oft|hada|lokr|vblora|fourierft|randlora|c3a|hra|shira|miss)_\w+(?:\..*)?"
)


def misfits(
    adapter: Any, model: Any, settings: Mapping[str, Any], tensors: Shapes
) -> Iterable[Refusal]:
    """Yield in what PEFT's adapter is not the one that a bridged method's settings describe.

    model: the base on torch's meta device.
    """
    from peft import get_peft_model, get_peft_model_state_dict

    config = adapter.peft_config(model)
    kind, own_kind = settings.get("peft_type"), config.peft_type.value
    if kind != own_kind:
        what = f"the folder holds an adapter of PEFT's type {shown(kind)}, and not {own_kind}"
        yield ("method",), what, "name a folder of that type, or the method that makes it"
        return
    fix = f"write {block(adapter, settings, tensors)}"
    usual, stated = type(config)().to_dict(), config.to_dict()
    skipped = _OF_THE_FILE | _SHOWN_BY_TENSORS | set(adapter.not_in_the_result)
    for key in sorted({*settings, *usual} - skipped):
        theirs, own = settings.get(key, usual.get(key)), stated.get(key)
        if key == "init_weights" and isinstance(theirs, bool) and isinstance(own, bool):
            continue  # how it starts
        if theirs != own and (theirs or own):
            mine = (key,) if key in type(adapter.config).model_fields else ("method",)
            yield mine, f"the folder's {key} is {shown(theirs)}, and here it is {shown(own)}", fix
    yield from adapter.peft_misfits(model, settings, fix)
    with torch.device("meta"):
        attached = get_peft_model(copy.deepcopy(model), adapter.for_shapes(config))
        ours = get_peft_model_state_dict(attached, save_embedding_layers=False)
    wanted = {name: tuple(tensor.shape) for name, tensor in ours.items()}
    if different := tensors_apart(wanted, tensors):
        yield ("target_modules",), different, fix


def block(adapter: Any, settings: Mapping[str, Any], tensors: Shapes) -> str:
    """Return the adapter block that describes a folder, as a recipe has it."""
    said: dict[str, Any] = {"method": adapter.method}
    said |= dict(_stated(adapter, settings))
    names = {match[1].rpartition(".")[2] for name in tensors if (match := _LAYER.fullmatch(name))}
    said["target_modules"] = f"[{', '.join(sorted(names))}]"
    whole = settings.get("modules_to_save")
    if isinstance(whole, list) and whole:
        kept = [str(name)[:60] for name in whole if re.fullmatch(r"[\w.]+", str(name))]
        said["modules_to_save"] = f"[{', '.join(kept)}]"
    return "adapter: {" + ", ".join(f"{key}: {value}" for key, value in said.items()) + "}"


def _stated(adapter: Any, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the folder's settings that a block has too, where they are not its defaults."""
    skipped = {"method", *_SHOWN_BY_TENSORS, *adapter.not_in_the_result}
    for key, field in type(adapter.config).model_fields.items():
        value = settings.get(key)
        if key in skipped or value is None or value == field.default:
            continue
        if isinstance(value, bool) and key == "init_weights":
            continue
        if isinstance(value, bool | int | float):
            yield key, str(value).lower()
        elif isinstance(value, str) and re.fullmatch(r"[\w.]{1,60}", value):
            yield key, value
