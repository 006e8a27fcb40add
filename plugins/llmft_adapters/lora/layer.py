"""LoRA's forward and backward pass as one step of the graph, where the layer is a plain one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import nn

NAME = "default"
"""PEFT's name for the only adapter of a model."""


def take_over(model: Any) -> None:
    """Give PEFT's plain LoRA layers the forward pass of this module; parameters stay PEFT's own."""
    for layer in model.modules():
        plain = type(layer) is PeftLinear and type(layer.get_base_layer()) is nn.Linear
        if plain and not layer.lora_variant and "forward" not in vars(layer):
            layer.forward = LoraForward(layer)


class LoraForward:
    """Stands in for a layer's `forward`: what PEFT's computes, gradients too.

    Where types are mixed, something is dropped, or the layer is not as it was made, PEFT's own is
    called.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        layer = self.layer
        if args or kwargs or not adapts(layer) or not is_plain(layer, x):
            theirs: torch.Tensor = PeftLinear.forward(layer, x, *args, **kwargs)
            return theirs
        base = layer.base_layer
        A, B = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
        return lora_linear(x, base.weight, base.bias, A, B, layer.scaling[NAME])


def adapts(layer: Any) -> bool:
    """Return whether a layer's only adapter is at work, beside its base."""
    return not layer.disable_adapters and not layer.merged and layer.active_adapters == [NAME]


def is_plain(layer: Any, x: torch.Tensor) -> bool:
    """Return whether `lora_linear` computes what a layer does: one dtype, nothing but products."""
    base = layer.get_base_layer()
    if type(base) is not nn.Linear or torch.is_autocast_enabled(x.device.type):
        return False
    if drops(layer) or layer.lora_bias.get(NAME) or base.weight.requires_grad:
        return False
    if base.bias is not None and base.bias.requires_grad:
        return False
    # Something else may stand around the base's own product, to bring its weight for example.
    if base._forward_hooks or base._forward_pre_hooks or "forward" in vars(base):
        return False
    A, B = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
    same: bool = x.dtype == base.weight.dtype == A.dtype == B.dtype
    return same


def drops(layer: Any) -> bool:
    """Return whether a layer now leaves out some of its adapter's input."""
    return layer.training and not isinstance(layer.lora_dropout[NAME], nn.Identity)


def unpacked_8_bits(layer: Any) -> torch.Tensor:
    """Return the weight of bitsandbytes' 8-bit layer as numbers, shape (O, I), float32.

    PEFT would lose its scales here on a CPU.
    """
    scales = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB
    stored = layer.weight.data if layer.state.CB is None else layer.state.CB
    numbers: torch.Tensor = stored * (scales.float() / 127).unsqueeze(1)
    return numbers


def lora_linear(
    x: torch.Tensor,
    W_OI: torch.Tensor,
    bias_O: torch.Tensor | None,
    A_rI: torch.Tensor,
    B_Or: torch.Tensor,
    scaling: float,
    scale_O: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return m (W x + s B A x) + b for each row of x, where m is scale_O, or 1 without it.

    W and b are frozen: gradients flow to x, A, B and m. W, A, B and x are of one dtype. It takes
    the products, and one walk over the output, as a single step of the graph; m takes one more,
    over the output or over W, whichever is shorter.
    """
    flat_TI = x.reshape(-1, x.shape[-1])
    apply: Any = _LoraLinear.apply
    out_TO: torch.Tensor = apply(flat_TI, W_OI, bias_O, A_rI, B_Or, scaling, scale_O)
    return out_TO.view(*x.shape[:-1], -1)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TI: torch.Tensor,
        W_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        A_rI: torch.Tensor,
        B_Or: torch.Tensor,
        scaling: float,
        scale_O: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.scaling, ctx.into_weight = scaling, False
        low_Tr = F.linear(x_TI, A_rI)
        if scale_O is None:
            ctx.save_for_backward(x_TI, W_OI, A_rI, B_Or, low_Tr, None, None)
            return F.linear(x_TI, W_OI, bias_O).addmm_(low_Tr, B_Or.t(), alpha=scaling)
        # What the scale's gradient needs is had from the output again, so no scale may be 0.
        scale_O = torch.where(scale_O == 0, torch.finfo(x_TI.dtype).tiny, scale_O.to(x_TI.dtype))
        ctx.into_weight = len(x_TI) > len(W_OI.t())
        if ctx.into_weight:
            scaled_OI, scaled_Or = (of_O * scale_O.unsqueeze(1) for of_O in (W_OI, B_Or))
            out_TO = F.linear(x_TI, scaled_OI).addmm_(low_Tr, scaled_Or.t(), alpha=scaling)
        else:
            out_TO = F.linear(x_TI, W_OI).addmm_(low_Tr, B_Or.t(), alpha=scaling).mul_(scale_O)
        ctx.save_for_backward(x_TI, W_OI, A_rI, B_Or, low_Tr, scale_O, out_TO)
        return out_TO if bias_O is None else out_TO + bias_O

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TI, W_OI, A_rI, B_Or, low_Tr, scale_O, out_TO = ctx.saved_tensors
        grad_TO, scale_grad_O = grads[0], None
        if scale_O is not None:
            scale_grad_O = sum_over_rows(grad_TO, out_TO) / scale_O
            if ctx.into_weight:
                W_OI, B_Or = (of_O * scale_O.unsqueeze(1) for of_O in (W_OI, B_Or))
            else:
                grad_TO = grad_TO * scale_O
        low_grad_Tr = (grad_TO @ B_Or).mul_(ctx.scaling)
        B_grad_Or = (grad_TO.t() @ low_Tr).mul_(ctx.scaling)
        if ctx.into_weight:
            B_grad_Or *= scale_O.unsqueeze(1)
        A_grad_rI = low_grad_Tr.t() @ x_TI
        x_grad_TI = None
        if ctx.needs_input_grad[0]:
            x_grad_TI = (grad_TO @ W_OI).addmm_(low_grad_Tr, A_rI)
        return x_grad_TI, None, None, A_grad_rI, B_grad_Or, None, scale_grad_O


# Rows of the running sum, whose walks then stay within a cache; numbers that do so anyway.
_SUMMED, _IN_A_CACHE = 64, 2**18


def sum_over_rows(some_TO: torch.Tensor, others_TO: torch.Tensor) -> torch.Tensor:
    """Return the sum over rows of two tensors' product, float32 or wider, in one walk."""
    dtype = torch.promote_types(some_TO.dtype, torch.float32)
    if some_TO.is_cuda or some_TO.dtype != dtype or some_TO.numel() <= _IN_A_CACHE:
        return (some_TO * others_TO).sum(dim=0, dtype=dtype)
    whole = len(some_TO) // _SUMMED * _SUMMED
    total_SO = some_TO.new_zeros(_SUMMED, some_TO.shape[1])
    pieces = (torch.split(each_TO[:whole], _SUMMED) for each_TO in (some_TO, others_TO))
    for some, others in zip(*pieces, strict=True):
        total_SO.addcmul_(some, others)
    return total_SO.sum(0) + (some_TO[whole:] * others_TO[whole:]).sum(0)
