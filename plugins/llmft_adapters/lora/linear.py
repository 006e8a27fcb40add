"""A frozen product and LoRA's update beside it as one step of the graph, gradients by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F

from llmft.toolkit import linear
from llmft_adapters.lora import dropout_mask, one_walk


def lora_linear(
    x: torch.Tensor,
    W_OI: torch.Tensor,
    bias_O: torch.Tensor | None,
    A_rI: torch.Tensor,
    B_Or: torch.Tensor,
    scaling: float,
    scale_O: torch.Tensor | None = None,
    *,
    dropout: float = 0.0,
    again: Callable[[], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return m (W x + s B A d(x)) + b for each row of x, where m is scale_O, or 1 without it.

    W and b are frozen: gradients flow to x, A, B and m. Products are of W's dtype, which the result
    has too; gradients have the dtype of what they are of. It takes the products, and one walk over
    the output, as a single step of the graph; m takes one more, over the output or over W,
    whichever is shorter.

    dropout: the probability with which d sets a number of x to 0; not together with scale_O.
    again: how the backward pass gets W, where it is not to be kept until then.
    """
    if dropout and scale_O is not None:
        raise ValueError("an update that is scaled together with its base drops nothing")
    flat_TI = x.reshape(-1, x.shape[-1])
    apply: Any = _LoraLinear.apply
    with by_hand(x):
        out_TO: torch.Tensor = apply(
            flat_TI, W_OI, bias_O, A_rI, B_Or, scaling, scale_O, dropout, again
        )
    return out_TO.view(*x.shape[:-1], -1)


def lora_update(
    base: torch.Tensor,
    x: torch.Tensor,
    A_rI: torch.Tensor,
    B_Or: torch.Tensor,
    scaling: float,
    *,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Return base + s B A d(x), where another step of the graph has made the base's product.

    Products are of base's dtype. dropout: as for `lora_linear`.
    """
    flat_TI, flat_TO = x.reshape(-1, x.shape[-1]), base.reshape(-1, base.shape[-1])
    apply: Any = _LoraUpdate.apply
    with by_hand(x):
        out_TO: torch.Tensor = apply(flat_TO, flat_TI, A_rI, B_Or, scaling, dropout)
    return out_TO.view(base.shape)


def by_hand(x: torch.Tensor) -> AbstractContextManager[Any]:
    """Return a block in which no type is changed by autocast."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


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
        dropout: float,
        again: Callable[[], torch.Tensor] | None,
    ) -> torch.Tensor:
        dtype = W_OI.dtype
        ctx.scaling, ctx.dropout, ctx.into_weight, ctx.again = scaling, dropout, False, again
        ctx.dtypes = x_TI.dtype, A_rI.dtype, B_Or.dtype
        x_TI, A_rI, B_Or = x_TI.to(dtype), A_rI.to(dtype), B_Or.to(dtype)
        low_Tr, mask_TI = _low(x_TI, A_rI, dropout)
        kept_OI = W_OI if again is None else None
        if scale_O is None:
            ctx.save_for_backward(x_TI, kept_OI, A_rI, B_Or, low_Tr, None, None, mask_TI)
            bias_O = None if bias_O is None else bias_O.to(dtype)
            return linear(x_TI, W_OI, bias_O).addmm_(low_Tr, B_Or.t(), alpha=scaling)
        # What the scale's gradient needs is had from the output again, so no scale may be 0.
        wide = torch.promote_types(dtype, torch.float32)
        scale_O = torch.where(scale_O == 0, torch.finfo(wide).tiny, scale_O.to(wide))
        ctx.into_weight = len(x_TI) > len(W_OI.t())
        if ctx.into_weight:
            scaled_OI, scaled_Or = (times(of_O, scale_O.unsqueeze(1)) for of_O in (W_OI, B_Or))
            out_TO = F.linear(x_TI, scaled_OI).addmm_(low_Tr, scaled_Or.t(), alpha=scaling)
        else:
            out_TO = linear(x_TI, W_OI).addmm_(low_Tr, B_Or.t(), alpha=scaling)
            mixed = out_TO.dtype != scale_O.dtype
            anew = mixed and (one_walk.compiles(out_TO) or _walks(out_TO))
            out_TO = times(out_TO, scale_O) if anew else out_TO.mul_(scale_O)
        ctx.save_for_backward(x_TI, kept_OI, A_rI, B_Or, low_Tr, scale_O, out_TO, None)
        return out_TO if bias_O is None else out_TO + bias_O.to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TI, W_OI, A_rI, B_Or, low_Tr, scale_O, out_TO, mask_TI = ctx.saved_tensors
        grad_TO, scale_grad_O = grads[0], None
        W_OI = W_OI if ctx.again is None else ctx.again()
        if scale_O is not None:
            scale_grad_O = sum_over_rows(grad_TO, out_TO) / scale_O
            if ctx.into_weight:
                W_OI, B_Or = (times(of_O, scale_O.unsqueeze(1)) for of_O in (W_OI, B_Or))
            else:
                grad_TO = times(grad_TO, scale_O)
        low_grad_Tr = (grad_TO @ B_Or).mul_(ctx.scaling)
        B_grad_Or = outer_sum(grad_TO, low_Tr).mul_(ctx.scaling)
        if ctx.into_weight:
            B_grad_Or = B_grad_Or * scale_O.unsqueeze(1)
        x_grad_TI = grad_TO @ W_OI if ctx.needs_input_grad[0] else None
        A_grad_rI = _through_low(x_grad_TI, x_TI, A_rI, low_grad_Tr, ctx.dropout, mask_TI)
        of_x, of_A, of_B = ctx.dtypes
        x_grad_TI = None if x_grad_TI is None else x_grad_TI.to(of_x)
        return (
            x_grad_TI, None, None, A_grad_rI.to(of_A), B_grad_Or.to(of_B),
            None, scale_grad_O, None, None,
        )  # fmt: skip


class _LoraUpdate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        base_TO: torch.Tensor,
        x_TI: torch.Tensor,
        A_rI: torch.Tensor,
        B_Or: torch.Tensor,
        scaling: float,
        dropout: float,
    ) -> torch.Tensor:
        dtype = base_TO.dtype
        ctx.scaling, ctx.dropout = scaling, dropout
        ctx.dtypes = x_TI.dtype, A_rI.dtype, B_Or.dtype
        x_TI, A_rI, B_Or = x_TI.to(dtype), A_rI.to(dtype), B_Or.to(dtype)
        low_Tr, mask_TI = _low(x_TI, A_rI, dropout)
        ctx.save_for_backward(x_TI, A_rI, B_Or, low_Tr, mask_TI)
        return torch.addmm(base_TO, low_Tr, B_Or.t(), alpha=scaling)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TI, A_rI, B_Or, low_Tr, mask_TI = ctx.saved_tensors
        low_grad_Tr = (grads[0] @ B_Or).mul_(ctx.scaling)
        B_grad_Or = outer_sum(grads[0], low_Tr).mul_(ctx.scaling)
        x_grad_TI = torch.zeros_like(x_TI) if ctx.needs_input_grad[1] else None
        A_grad_rI = _through_low(x_grad_TI, x_TI, A_rI, low_grad_Tr, ctx.dropout, mask_TI)
        of_x, of_A, of_B = ctx.dtypes
        x_grad_TI = None if x_grad_TI is None else x_grad_TI.to(of_x)
        return grads[0], x_grad_TI, A_grad_rI.to(of_A), B_grad_Or.to(of_B), None, None


def _low(
    x_TI: torch.Tensor, A_rI: torch.Tensor, dropout: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return A d(x), and the mask of d: on a CPU a view of a table, which takes no memory."""
    if not dropout:
        return F.linear(x_TI, A_rI), None
    if not draws_in_table(x_TI):
        text_TI, mask_TI = torch.native_dropout(x_TI, dropout, True)
        return F.linear(text_TI, A_rI), mask_TI
    mask_TI = dropout_mask.draw(len(x_TI), x_TI.shape[1], dropout, x_TI.dtype)
    low_Tr = x_TI.new_empty(len(x_TI), len(A_rI))
    for x, mask, room, low in _pieces(x_TI, mask_TI, low_Tr):
        torch.mul(x, mask, out=room)
        torch.mm(room, A_rI.t(), out=low)
    return low_Tr, mask_TI


def _through_low(
    x_grad_TI: torch.Tensor | None,
    x_TI: torch.Tensor,
    A_rI: torch.Tensor,
    low_grad_Tr: torch.Tensor,
    dropout: float,
    mask_TI: torch.Tensor | None,
) -> torch.Tensor:
    """Add what comes to x through A d(x) to its gradient, in place, and return A's."""
    if mask_TI is None:
        if x_grad_TI is not None:
            x_grad_TI.addmm_(low_grad_Tr, A_rI)
        return low_grad_Tr.t() @ x_TI
    if not draws_in_table(x_TI):
        drop: Any = torch.ops.aten.native_dropout_backward  # times the mask and 1 / (1 - p)
        if x_grad_TI is not None:
            x_grad_TI += drop(low_grad_Tr @ A_rI, mask_TI, 1 / (1 - dropout))
        A_grad_rI: torch.Tensor = low_grad_Tr.t() @ drop(x_TI, mask_TI, 1 / (1 - dropout))
        return A_grad_rI
    A_grad_rI = torch.zeros_like(A_rI, dtype=torch.promote_types(A_rI.dtype, torch.float32))
    into_TI = x_TI if x_grad_TI is None else x_grad_TI
    for x, mask, room, low, into in _pieces(x_TI, mask_TI, low_grad_Tr, into_TI):
        torch.mul(x, mask, out=room)
        A_grad_rI += low.t() @ room
        if x_grad_TI is not None:
            torch.mm(low, A_rI, out=room)
            into.addcmul_(room, mask)
    return A_grad_rI


def outer_sum(wide_TO: torch.Tensor, low_Tr: torch.Tensor) -> torch.Tensor:
    """Return the sum over rows of each one's outer product, shape (O, r).

    As the transpose of (r, O): of the two ways to write it, a CPU takes this one in half the time.
    """
    return (low_Tr.t() @ wide_TO).t()


def draws_in_table(x_TI: torch.Tensor) -> bool:
    """Return whether masks come from a table, and dropout walks over some rows at a time.

    A CPU gains by both; a GPU draws faster than it reads.
    """
    return x_TI.device.type == "cpu"


_IN_A_NEAR_CACHE = 2**16
"""Numbers of a piece of rows, of which a product and a mask are then held near the core."""


def _pieces(
    x_TI: torch.Tensor, mask_TI: torch.Tensor, *more: torch.Tensor
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield some rows of each tensor at a time; third in place is room of x's shape to write in.

    In 16 bits it is all rows: there small products lose more than what a near cache gains.
    """
    rows = max(1, _IN_A_NEAR_CACHE // x_TI.shape[1] if x_TI.itemsize > 2 else len(x_TI))
    room_TI = torch.empty_like(x_TI[:rows])
    for pieces in zip(*(torch.split(t, rows) for t in (x_TI, mask_TI, *more)), strict=True):
        x, mask, *others = pieces
        yield (x, mask, room_TI[: len(x)], *others)


def times(some: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return a product in the first's dtype, computed in the wider one, without a wide copy."""
    if some.dtype == scale.dtype:
        return some * scale
    if one_walk.compiles(some):
        return one_walk.times(some, scale)
    out = torch.empty_like(some)
    if not _walks(some):
        return torch.mul(some, scale, out=out)
    rows = max(1, _IN_A_NEAR_CACHE // some.shape[1])
    of_rows = scale.expand(len(some), -1) if scale.dim() == 2 else None
    for start in range(0, len(some), rows):
        here = slice(start, start + rows)
        factor = scale if of_rows is None else of_rows[here]
        out[here].copy_(some[here].to(scale.dtype).mul_(factor))
    return out


def _walks(some: torch.Tensor) -> bool:
    """Return whether two types are better multiplied by rows in a cache: on a CPU, of numbers.

    There a product of two types along rows takes five times as long. A plan's tensors have none.
    """
    return some.device.type == "cpu" and type(some) in (torch.Tensor, torch.nn.Parameter)


# Rows of the running sum, whose walks then stay within a cache; numbers that do so anyway.
_SUMMED, _IN_A_CACHE = 64, 2**18


def sum_over_rows(some_TO: torch.Tensor, others_TO: torch.Tensor) -> torch.Tensor:
    """Return the sum over rows of two tensors' product, float32 or wider, in one walk."""
    dtype = torch.promote_types(some_TO.dtype, torch.float32)
    if dtype == torch.float32 and one_walk.compiles(some_TO):
        return one_walk.sum_over_rows(some_TO, others_TO)
    walks = some_TO.dtype == dtype or _walks(some_TO)
    if some_TO.is_cuda or not walks or some_TO.numel() <= _IN_A_CACHE:
        return (some_TO * others_TO).sum(dim=0, dtype=dtype)
    whole = len(some_TO) // _SUMMED * _SUMMED
    total_SO = some_TO.new_zeros(_SUMMED, some_TO.shape[1], dtype=dtype)
    pieces = (torch.split(each_TO[:whole], _SUMMED) for each_TO in (some_TO, others_TO))
    for some, others in zip(*pieces, strict=True):
        total_SO.addcmul_(some.to(dtype), others.to(dtype))
    rest = some_TO[whole:].to(dtype) * others_TO[whole:].to(dtype)
    return total_SO.sum(0) + rest.sum(0)
