"""DoRA's forward pass, with work of the update's rank only beside the base's own product."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from llmft_adapters.lora.layer import (
    NAME,
    adapts,
    drops,
    is_plain,
    lora_linear,
    sum_over_rows,
    unpacked_8_bits,
)

_updates = 0
"""Steps that optimisers have made in this process."""


def _count(*_: Any) -> None:
    global _updates
    _updates += 1


# Some optimisers write through pointers, which torch's count of changes to a tensor does not see.
register_optimizer_step_post_hook(_count)


def take_over(model: nn.Module) -> None:
    """Give PEFT's DoRA layers the forward pass of this module; parameters stay PEFT's own."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and NAME in layer.lora_magnitude_vector:
            _restore_8_bits(layer.get_base_layer())
            layer.forward = DoraForward(layer)


def _restore_8_bits(layer: Any) -> None:
    """Give an 8-bit weight its scales again, which PEFT loses on a CPU when it starts DoRA."""
    if type(layer).__name__ == "Linear8bitLt" and layer.weight.SCB is None:
        layer.weight.SCB = layer.state.SCB


def _unpacked(layer: Any) -> torch.Tensor:
    """Return a layer's weight as numbers, whatever it is stored as."""
    if type(layer).__name__ == "Linear4bit":
        from bitsandbytes.functional import dequantize_4bit

        # PEFT goes by the weight's class, which a plan's tensors without numbers do not have.
        unpacked: torch.Tensor = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        return unpacked.detach()
    if type(layer).__name__ != "Linear8bitLt":
        weight: torch.Tensor = dequantize_module_weight(layer).detach()
        return weight
    return unpacked_8_bits(layer)


def updated_norms(
    squares_O: torch.Tensor,
    product_rO: torch.Tensor,
    A_rI: torch.Tensor,
    B_Or: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Return the length of each row of W + s B A, shape (O,), float32.

    squares_O: the squared lengths of W's own rows. product_rO: A W^T.
    """
    # |w + s b A|^2 = |w|^2 + 2 s b.(A w) + s^2 b (A A^T) b^T
    A, B = A_rI.float(), B_Or.float()
    half_Or = torch.addmm(product_rO.float().t(), B, A @ A.t(), beta=2, alpha=scaling)
    new_O = torch.add(squares_O, (half_Or * B).sum(dim=1), alpha=scaling)
    return new_O.clamp_(min=torch.finfo(torch.float32).tiny).sqrt_()


class DoraForward:
    """Stands in for a layer's `forward`: what PEFT's computes, gradients too."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.kind = type(layer.get_base_layer()).__name__
        self._own: torch.Tensor | None = None
        self._last: tuple[tuple[int, ...], torch.Tensor] | None = None

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        layer = self.layer
        if args or kwargs or not adapts(layer):
            theirs: torch.Tensor = type(layer).forward(layer, x, *args, **kwargs)
            return theirs
        A, B = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
        scaling, dropout = layer.scaling[NAME], layer.lora_dropout[NAME]
        if is_plain(layer, x):
            base, norms_O = layer.get_base_layer(), self._fresh(A, B)
            if norms_O is None:
                norms_O = self._updated(F.linear(A.detach(), base.weight), A, B, scaling)
            scale_O = layer.lora_magnitude_vector[NAME].weight / norms_O
            return lora_linear(x, base.weight, base.bias, A, B, scaling, scale_O)
        dropping = drops(layer)
        shape, x = x.shape, x.flatten(0, -2)
        text = x.to(A.dtype) if not torch.is_autocast_enabled(x.device.type) else x
        text = dropout(text) if dropping else text
        norms_O = self._fresh(A, B)
        extra = [text] if dropping else []
        extra += [A.detach()] if norms_O is None else []
        base, products = self._products(x, extra)
        if norms_O is None:
            norms_O = self._updated(products.pop(), A, B, scaling)
        # DoRA, section 4.3: the norm is taken as a constant, so that no gradient goes through it.
        scale_O = layer.lora_magnitude_vector[NAME].weight / norms_O
        low = layer.lora_A[NAME](text)
        if dropping:
            update = layer.lora_B[NAME](low) * (scaling * scale_O)
            out = base + (scale_O - 1) * products.pop() + update
        else:
            out = _scaled(_plus(base, low, B, scaling), scale_O)
            bias = layer.get_base_layer().bias
            out = out if bias is None else out + bias * (1 - scale_O)
        whole: torch.Tensor = out.to(base.dtype).view(*shape[:-1], -1)
        return whole

    def _products(
        self, x: torch.Tensor, extra: list[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the base layer's output, and W times the rows of each extra input, biases off."""
        layer = self.layer.get_base_layer()
        if self.kind != "Linear4bit" or not extra:
            return layer(x), [self._product(layer, rows) for rows in extra]
        # One call, because each call unpacks the 4-bit weight anew.
        rows = [x, *(t.to(x.dtype) for t in extra)]
        base, *products = layer(torch.cat(rows)).split([len(t) for t in rows])
        if layer.bias is not None:
            products = [product - layer.bias for product in products]
        return base, products

    def _product(self, layer: Any, rows: torch.Tensor) -> torch.Tensor:
        if self.kind == "Linear8bitLt" and rows.requires_grad:
            out: torch.Tensor = layer(rows)
            return out if layer.bias is None else out - layer.bias
        # No graph holds an unpacked weight: of 8 bits, only A, which is detached, comes here.
        weight = _unpacked(layer)
        rows = rows.to(weight.dtype)
        return rows @ weight if self.layer.fan_in_fan_out else F.linear(rows, weight)

    @torch.no_grad()
    def _updated(
        self, product_rO: torch.Tensor, A: torch.Tensor, B: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        if self._own is None or self._own.device != A.device:
            weight = _unpacked(self.layer.get_base_layer())
            weight = weight.t() if self.layer.fan_in_fan_out else weight
            self._own = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32).to(A.device)
            self._own.square_()
        norms_O = updated_norms(self._own, product_rO, A, B, scaling)
        self._last = self._state(A, B), norms_O
        return norms_O

    def _fresh(self, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor | None:
        """Return the norms of the last call, where neither A nor B can have moved since."""
        known = self._last is not None and self._last[0] == self._state(A, B)
        return self._last[1] if known and self._last else None

    def _state(self, A: torch.Tensor, B: torch.Tensor) -> tuple[int, ...]:
        """Return what is another one as soon as A or B is changed.

        Evaluations count too: a run that goes on makes none of those before, and where norms are
        made, a product of 4 bits has more rows, and may be rounded in another way.
        """
        return int(self.layer.training), _updates, A._version, B._version


class _Scaled(torch.autograd.Function):
    """Rows times a scale for each column; the gradients in walks short enough for a cache."""

    @staticmethod
    def forward(ctx: Any, inner_TO: torch.Tensor, scale_O: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inner_TO, scale_O)
        return inner_TO * scale_O

    @staticmethod
    def backward(ctx: Any, grad_TO: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inner_TO, scale_O = ctx.saved_tensors
        to_scale = sum_over_rows(grad_TO, inner_TO).to(scale_O.dtype)
        return (grad_TO * scale_O).to(inner_TO.dtype), to_scale


def _scaled(inner_TO: torch.Tensor, scale_O: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = _Scaled.apply(inner_TO, scale_O)  # type: ignore[no-untyped-call]
    return out


def _plus(
    base_TO: torch.Tensor, low_Tr: torch.Tensor, B_Or: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Return base + s B low, in one walk over the output where the types allow."""
    if base_TO.dtype != low_Tr.dtype or torch.is_autocast_enabled(base_TO.device.type):
        return base_TO + F.linear(low_Tr, B_Or) * scaling
    return torch.addmm(base_TO, low_Tr, B_Or.t(), alpha=scaling)
