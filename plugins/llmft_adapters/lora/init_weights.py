"""LoRA that starts from the base's own directions: PiSSA (Meng et al. 2024), OLoRA (2024).

Both set A and B to a part of W, and train them beside what is left of it, W - s B0 A0. Here W
stays as it is and the start is kept: W + s (B A - B0 A0) is the same sum. So the base can be had
back, may be quantised, and may be another stage's too.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.tuners.lora.layer import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import save_file
from torch import nn

from llmft_adapters.lora.frozen_weight import unpacked_8_bits
from llmft_adapters.lora.layer import NAME

WEIGHTS = "adapter_model.safetensors"


def start(model: Any, how: str) -> None:
    """Set each layer's A and B as PEFT's `init_lora_weights` of that name does, W kept."""
    for _, layer in _layers(model):
        base = layer.get_base_layer()
        stored, weight = base.weight, _unpacked(base)
        if how == "olora" and layer.fan_in_fan_out:
            weight = weight.t().contiguous()  # which PEFT forgets
        base.weight = nn.Parameter(weight, requires_grad=False)
        try:
            if how == "olora":
                layer.olora_init(NAME)
            else:
                layer.pissa_init(NAME, how)
        finally:
            base.weight = stored
        A, B = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
        _keep_start(layer, A.detach().clone(), B.detach().clone())


def save(model: Any, folder: Path) -> None:
    """Write what plain PEFT loads onto the plain base: LoRA of twice the rank, [B -B0] [A; A0]."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    for name, layer in _layers(model):
        A, B = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
        state[f"{name}.lora_A.weight"] = torch.cat([A, layer.start_A])
        state[f"{name}.lora_B.weight"] = torch.cat([B, -layer.start_B], dim=1)
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    _of_twice_the_rank(model.peft_config[NAME]).save_pretrained(str(folder))


def load(base: Any, folder: Path, config: Any) -> PeftModel:
    """Return the base with what `save` wrote attached, ready to be trained on."""
    model = get_peft_model(base, config)
    state = load_peft_weights(str(folder), device="cpu")
    for name, layer in _layers(model):
        rank, where = layer.r[NAME], layer.lora_A[NAME].weight.device
        key_A, key_B = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        A, B = state[key_A], state[key_B]
        state[key_A], state[key_B] = A[:rank].clone(), B[:, :rank].clone()
        _keep_start(layer, A[rank:].clone().to(where), -B[:, rank:].to(where))
    set_peft_model_state_dict(model, state)
    return model


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and NAME in layer.lora_A:
            yield name, layer


def _keep_start(layer: Any, A0: torch.Tensor, B0: torch.Tensor) -> None:
    layer.register_buffer("start_A", A0, persistent=False)
    layer.register_buffer("start_B", B0, persistent=False)
    difference = Difference(layer)
    layer.forward, layer.get_delta_weight = difference, difference.weight


class Difference:
    """Stands in for a layer's `forward`: the base's product, and what has moved since the start."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        layer = self.layer
        if layer.disable_adapters or layer.merged or args or kwargs:
            theirs: torch.Tensor = type(layer).forward(layer, x, *args, **kwargs)
            return theirs
        base: torch.Tensor = layer.base_layer(x)
        A, B = layer.lora_A[NAME], layer.lora_B[NAME]
        text = x if torch.is_autocast_enabled(x.device.type) else x.to(A.weight.dtype)
        was = F.linear(F.linear(text, layer.start_A), layer.start_B)
        moved: torch.Tensor = B(A(layer.lora_dropout[NAME](text))) - was
        scaling: float = layer.scaling[NAME]
        return (base + moved * scaling).to(base.dtype)

    def weight(self, adapter: str) -> torch.Tensor:
        """Return what is added to the base's weight when the adapter is merged."""
        layer = self.layer
        A, B = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        moved: torch.Tensor = B.float() @ A.float() - layer.start_B.float() @ layer.start_A.float()
        moved = moved.t() if layer.fan_in_fan_out else moved
        scaling: float = layer.scaling[adapter]
        return moved * scaling


def _of_twice_the_rank(config: Any) -> Any:
    """Return the config of the saved form, scaled as it is trained."""
    saved = copy.deepcopy(config)
    # s is alpha / r, or alpha / sqrt(r)
    more = math.sqrt(2) if config.use_rslora else 2
    saved.r, saved.lora_alpha = 2 * config.r, more * config.lora_alpha
    saved.rank_pattern = {name: 2 * r for name, r in config.rank_pattern.items()}
    saved.alpha_pattern = {name: more * alpha for name, alpha in config.alpha_pattern.items()}
    saved.inference_mode = True
    return saved


def _unpacked(layer: Any) -> torch.Tensor:
    """Return a copy of a layer's weight as numbers, whatever it is stored as."""
    if type(layer).__name__ != "Linear8bitLt":
        weight: torch.Tensor = dequantize_module_weight(layer).detach().clone()
        return weight
    return unpacked_8_bits(layer)
