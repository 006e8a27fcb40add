"""DoRA's forward pass, with work of the update's rank only beside the base's own product."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from llmft_adapters.dora.linear import dropped_dora_linear
from llmft_adapters.lora import dropout_mask, frozen_weight
from llmft_adapters.lora.frozen_weight import unpacked
from llmft_adapters.lora.layer import (
    NAME,
    adapts,
    as_the_base_gives,
    dropout_of,
    is_plain,
    multiplies_itself,
    weight_of,
)
from llmft_adapters.lora.linear import by_hand, lora_linear, sum_over_rows

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
        if not isinstance(layer, LoraLayer) or NAME not in layer.lora_A:
            continue  # an embedding, too, which keeps PEFT's own forward pass
        if NAME in layer.lora_magnitude_vector:
            _restore_8_bits(layer.get_base_layer())
            dropout_mask.take_over(layer, NAME)
            layer.forward = DoraForward(layer)


def _restore_8_bits(layer: Any) -> None:
    """Give an 8-bit weight its scales again, which PEFT loses on a CPU when it starts DoRA."""
    if type(layer).__name__ == "Linear8bitLt" and layer.weight.SCB is None:
        layer.weight.SCB = layer.state.SCB


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


def precise_product(A_rI: torch.Tensor, W_OI: torch.Tensor) -> torch.Tensor:
    """Return A W^T, shape (r, O), float32 or wider, though W be of 16 bits; no copy of all W."""
    if W_OI.dtype in (torch.float32, torch.float64):
        return F.linear(A_rI.to(W_OI.dtype), W_OI)
    A_rI = A_rI.float()
    if not W_OI.is_cuda:
        pieces = [F.linear(A_rI, rows.float()) for rows in torch.split(W_OI, _ROWS_AT_ONCE)]
        return torch.cat(pieces, dim=1)
    # A in two parts of W's type, which together have its precision; sums are float32.
    high = A_rI.to(W_OI.dtype)
    parts = torch.cat([high, (A_rI - high.float()).to(W_OI.dtype)])
    both: torch.Tensor = torch.mm(parts, W_OI.t(), out_dtype=torch.float32)
    return both[: len(A_rI)] + both[len(A_rI) :]


_ROWS_AT_ONCE = 1024


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
        if is_plain(layer, x) and not multiplies_itself(layer.get_base_layer()):
            return self._in_one_step(x, A, B, scaling)
        dropping = bool(dropout.training and getattr(dropout, "p", 0))
        shape, x = x.shape, x.flatten(0, -2)
        text = x.to(A.dtype) if not torch.is_autocast_enabled(x.device.type) else x
        text = dropout(text) if dropping else text
        base = layer.get_base_layer()(x)
        # DoRA, section 4.3: the norm is taken as a constant, so that no gradient goes through it.
        scale_O = layer.lora_magnitude_vector[NAME].weight / self._norms(A, B, scaling)
        low = layer.lora_A[NAME](text)
        if dropping:
            update = layer.lora_B[NAME](low) * (scaling * scale_O)
            out = base + (scale_O - 1) * self._product(layer.get_base_layer(), text) + update
        else:
            out = _scaled(_plus(base, low, B, scaling), scale_O)
            bias = layer.get_base_layer().bias
            out = out if bias is None else out + bias * (1 - scale_O)
        whole: torch.Tensor = out.to(base.dtype).view(*shape[:-1], -1)
        return whole

    def _in_one_step(
        self, x: torch.Tensor, A: torch.Tensor, B: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        layer, base = self.layer, self.layer.get_base_layer()
        weight = weight_of(base, x)
        W_OI = weight()
        # A plain weight as it is stored, though autocast rounds it for the product.
        numbers = None if self.kind == "Linear" else W_OI
        scale_O = layer.lora_magnitude_vector[NAME].weight / self._norms(A, B, scaling, numbers)
        given = (x, W_OI, base.bias, A, B, scaling, scale_O)
        if dropout := dropout_of(layer):
            out = dropped_dora_linear(*given, dropout, weight.again)
        else:
            out = lora_linear(*given, again=weight.again)
        return as_the_base_gives(base, x, out)

    def _product(self, layer: Any, rows: torch.Tensor) -> torch.Tensor:
        """Return W times each row, without the bias."""
        if self.kind in frozen_weight.KINDS:  # no graph holds an unpacked weight
            out: torch.Tensor = layer(rows)
            return out if layer.bias is None else out - layer.bias
        weight = unpacked(layer)
        rows = rows.to(weight.dtype)
        return rows @ weight if self.layer.fan_in_fan_out else F.linear(rows, weight)

    @torch.no_grad()
    def _norms(
        self, A: torch.Tensor, B: torch.Tensor, scaling: float, W_OI: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the length of each row of W + s B A: the last call's where nothing has moved.

        W_OI: the base's weight as numbers, where the caller has it.
        """
        state = self._state(A, B)
        if self._last is None or self._last[0] != state:
            with by_hand(A):
                self._last = state, self._made(A, B, scaling, W_OI)
        return self._last[1]

    def _made(
        self, A: torch.Tensor, B: torch.Tensor, scaling: float, W_OI: torch.Tensor | None
    ) -> torch.Tensor:
        if W_OI is None:
            stored = unpacked(self.layer.get_base_layer())
            W_OI = stored.t() if self.layer.fan_in_fan_out else stored
        if self._own is None or self._own.device != A.device:
            self._own = torch.linalg.vector_norm(W_OI, dim=1, dtype=torch.float32).to(A.device)
            self._own.square_()
        return updated_norms(self._own, precise_product(A, W_OI), A, B, scaling)

    def _state(self, A: torch.Tensor, B: torch.Tensor) -> tuple[int, ...]:
        """Return what is another one as soon as A or B is changed.

        Evaluations count too: a run that goes on makes none of those before.
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
