"""DoRA's product where some of the update's input is dropped, as one step of the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from llmft_adapters.lora import dropout_mask
from llmft_adapters.lora.linear import by_hand, draws_in_table, outer_sum, sum_over_rows, times


def dropped_dora_linear(
    x: torch.Tensor,
    W_OI: torch.Tensor,
    bias_O: torch.Tensor | None,
    A_rI: torch.Tensor,
    B_Or: torch.Tensor,
    scaling: float,
    scale_O: torch.Tensor,
    dropout: float,
    again: Callable[[], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return W x + (m - 1) W d(x) + m s B A d(x) + b for each row of x, where m is scale_O.

    That is what PEFT's DoRA computes under dropout d, of probability `dropout` > 0. Two products
    with W are needed, each way, as m scales what was dropped only. W and b are frozen; dtypes and
    again are as for `lora_linear`.
    """
    flat_TI = x.reshape(-1, x.shape[-1])
    apply: Any = _DroppedDora.apply
    with by_hand(x):
        out_TO: torch.Tensor = apply(
            flat_TI, W_OI, bias_O, A_rI, B_Or, scaling, scale_O, dropout, again
        )
    return out_TO.view(*x.shape[:-1], -1)


class _DroppedDora(torch.autograd.Function):
    """W (x - d(x)) + m (W + s B A) d(x) + b: the same sum, in two products."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TI: torch.Tensor,
        W_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        A_rI: torch.Tensor,
        B_Or: torch.Tensor,
        scaling: float,
        scale_O: torch.Tensor,
        dropout: float,
        again: Callable[[], torch.Tensor] | None,
    ) -> torch.Tensor:
        dtype = W_OI.dtype
        ctx.scaling, ctx.dropout, ctx.again = scaling, dropout, again
        ctx.dtypes = x_TI.dtype, A_rI.dtype, B_Or.dtype
        x_TI, A_rI, B_Or = x_TI.to(dtype), A_rI.to(dtype), B_Or.to(dtype)
        if draws_in_table(x_TI):
            mask_TI = dropout_mask.draw(len(x_TI), x_TI.shape[1], dropout, dtype)
            text_TI = x_TI * mask_TI
        else:
            text_TI, mask_TI = torch.native_dropout(x_TI, dropout, True)
        low_Tr = F.linear(text_TI, A_rI)
        inner_TO = F.linear(text_TI, W_OI).addmm_(low_Tr, B_Or.t(), alpha=scaling)
        out_TO = F.linear(x_TI - text_TI, W_OI, None if bias_O is None else bias_O.to(dtype))
        out_TO.addcmul_(inner_TO, scale_O)
        kept_OI = W_OI if again is None else None
        ctx.save_for_backward(text_TI, mask_TI, kept_OI, A_rI, B_Or, low_Tr, scale_O, inner_TO)
        return out_TO

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        text_TI, mask_TI, W_OI, A_rI, B_Or, low_Tr, scale_O, inner_TO = ctx.saved_tensors
        (grad_TO,) = grads
        W_OI = W_OI if ctx.again is None else ctx.again()
        scale_grad_O = sum_over_rows(grad_TO, inner_TO).to(scale_O.dtype)
        scaled_TO = times(grad_TO, scale_O)
        low_grad_Tr = (scaled_TO @ B_Or).mul_(ctx.scaling)
        B_grad_Or = outer_sum(scaled_TO, low_Tr).mul_(ctx.scaling)
        A_grad_rI = low_grad_Tr.t() @ text_TI
        of_x, of_A, of_B = ctx.dtypes
        x_grad_TI = None
        if ctx.needs_input_grad[0]:
            x_grad_TI = grad_TO @ W_OI
            # What comes through d(x), less what does not come through x - d(x).
            more_TI = (scaled_TO @ W_OI).addmm_(low_grad_Tr, A_rI).sub_(x_grad_TI)
            value = 1.0 if mask_TI.is_floating_point() else 1 / (1 - ctx.dropout)
            x_grad_TI = x_grad_TI.addcmul_(more_TI, mask_TI.to(more_TI.dtype), value=value)
            x_grad_TI = x_grad_TI.to(of_x)
        return (
            x_grad_TI, None, None, A_grad_rI.to(of_A), B_grad_Or.to(of_B),
            None, scale_grad_O, None, None,
        )  # fmt: skip
