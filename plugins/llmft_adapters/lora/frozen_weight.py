"""The frozen weight beneath an adapter, as numbers: plain, or as bitsandbytes stores it."""

from __future__ import annotations

from typing import Any

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import nn

KINDS = ("Linear4bit", "Linear8bitLt")
"""bitsandbytes' layers, by name: the library need not be there."""


def kind(base: Any) -> str:
    """Return 'Linear' of a plain linear layer, a name of KINDS, or another class's."""
    name = type(base).__name__
    return name if type(base) is nn.Linear or name in KINDS else f"not plain: {name}"


def only_multiplies(base: Any) -> bool:
    """Return whether a layer's output is its frozen weight's product and its frozen bias."""
    if kind(base) not in ("Linear", *KINDS) or base.weight.requires_grad:
        return False
    if base.bias is not None and base.bias.requires_grad:
        return False
    # Something else may stand around the base's own product, to bring its weight for example.
    return not (base._forward_hooks or base._forward_pre_hooks or "forward" in vars(base))


def product_type(base: Any, x: torch.Tensor) -> torch.dtype | None:
    """Return the dtype in which a layer multiplies x, or None where it would refuse to."""
    if kind(base) == "Linear4bit":
        if not base.compute_type_is_set:  # as its own forward pass does when first called
            base.set_compute_type(x)
            base.compute_type_is_set = True
        found: torch.dtype = base.compute_dtype or x.dtype
        return found
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype if x.dtype == base.weight.dtype else None


class Weight:
    """Gives a layer's weight in one dtype, shape (O, I), made anew each time it is called."""

    def __init__(self, base: Any, dtype: torch.dtype) -> None:
        self.base, self.dtype = base, dtype

    @property
    def again(self) -> Weight | None:
        """What a backward pass calls; None where the layer holds the weight just so."""
        kept = kind(self.base) == "Linear" and self.base.weight.dtype == self.dtype
        return None if kept else self

    def __call__(self) -> torch.Tensor:
        return unpacked(self.base).to(self.dtype)


def unpacked(base: Any) -> torch.Tensor:
    """Return a layer's weight as numbers, whatever it is stored as; not a copy where it is plain.

    Of a transformers Conv1D it is the transpose.
    """
    if kind(base) == "Linear4bit":
        from bitsandbytes.functional import dequantize_4bit

        # PEFT goes by the weight's class, which a plan's tensors without numbers do not have.
        numbers: torch.Tensor = dequantize_4bit(base.weight.data, base.weight.quant_state)
        return numbers.detach()
    if kind(base) == "Linear8bitLt":
        return unpacked_8_bits(base)
    if kind(base) == "Linear":
        return base.weight  # type: ignore[no-any-return]
    weight: torch.Tensor = dequantize_module_weight(base).detach()
    return weight


def unpacked_8_bits(layer: Any) -> torch.Tensor:
    """Return the weight of bitsandbytes' 8-bit layer as numbers, shape (O, I), float32.

    PEFT would lose its scales here on a CPU.
    """
    scales = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB
    stored = layer.weight.data if layer.state.CB is None else layer.state.CB
    numbers: torch.Tensor = stored * (scales.float() / 127).unsqueeze(1)
    return numbers
