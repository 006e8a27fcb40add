"""PEFT's LoRA layers with a forward pass of our own: one step of the graph in place of seven."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from llmft_adapters.lora import dropout_mask, frozen_weight
from llmft_adapters.lora.frozen_weight import Weight
from llmft_adapters.lora.linear import lora_linear, lora_update

NAME = "default"
"""PEFT's name for the only adapter of a model."""


def take_over(model: Any) -> None:
    """Give PEFT's LoRA layers the forward pass of this module; parameters stay PEFT's own."""
    for layer in model.modules():
        if not isinstance(layer, LoraLayer) or NAME not in layer.lora_A:
            continue
        dropout_mask.take_over(layer, NAME)
        if layer.lora_variant or "forward" in vars(layer):
            continue
        kind = frozen_weight.kind(layer.get_base_layer())
        if kind in frozen_weight.KINDS or (kind == "Linear" and type(layer) is PeftLinear):
            layer.forward = LoraForward(layer)


class LoraForward:
    """Stands in for a layer's `forward`: what PEFT's computes, gradients too.

    Products are of the type in which the base multiplies, and the adapter keeps its own. Where the
    layer is not as it was made, PEFT's forward pass is called.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        layer = self.layer
        if args or kwargs or not adapts(layer) or not is_plain(layer, x):
            theirs: torch.Tensor = type(layer).forward(layer, x, *args, **kwargs)
            return theirs
        base, dropout = layer.base_layer, dropout_of(layer) or 0.0
        A, B, scaling = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight, layer.scaling[NAME]
        if multiplies_itself(base):
            return lora_update(base(x), x, A, B, scaling, dropout=dropout)
        weight = weight_of(base, x)
        given = (x, weight(), base.bias, A, B, scaling)
        out = lora_linear(*given, dropout=dropout, again=weight.again)
        return as_the_base_gives(base, x, out)


def adapts(layer: Any) -> bool:
    """Return whether a layer's only adapter is at work, beside its base."""
    return not layer.disable_adapters and not layer.merged and layer.active_adapters == [NAME]


def is_plain(layer: Any, x: torch.Tensor) -> bool:
    """Return whether a layer does nothing but multiply, and leave out some of the update's input.

    It refuses what PEFT's own forward pass refuses, by being not plain.
    """
    base = layer.get_base_layer()
    if layer.lora_bias.get(NAME) or not frozen_weight.only_multiplies(base):
        return False
    return dropout_of(layer) is not None and frozen_weight.product_type(base, x) is not None


def dropout_of(layer: Any) -> float | None:
    """Return the probability with which a layer now drops its update's input; None: otherwise."""
    dropout = layer.lora_dropout[NAME]
    if isinstance(dropout, nn.Identity):
        return 0.0
    if type(dropout) not in (nn.Dropout, dropout_mask.TableDropout) or dropout.p >= 1:
        return None
    return float(dropout.p) if dropout.training else 0.0


def multiplies_itself(base: Any) -> bool:
    """Return whether a base's own product is to be taken, and not one with its weight unpacked.

    Of 8 bits it rounds its input, too. Of 4 bits it has kernels for few rows, as in decoding.
    """
    kind = frozen_weight.kind(base)
    return kind == "Linear8bitLt" or (kind == "Linear4bit" and not torch.is_grad_enabled())


def weight_of(base: Any, x: torch.Tensor) -> Weight:
    """Return a base's weight in the type in which it multiplies x."""
    dtype = frozen_weight.product_type(base, x)
    assert dtype is not None, "is_plain has seen to it"
    return Weight(base, dtype)


def as_the_base_gives(base: Any, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Return an output in the type in which the base gives its own: of 4 bits, the input's."""
    return out.to(x.dtype) if frozen_weight.kind(base) == "Linear4bit" else out
