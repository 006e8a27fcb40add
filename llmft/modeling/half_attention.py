"""Attention of 16 bits on a CPU, with a backward pass in float32.

torch's fused kernel reads 16 bits faster than float32 going forward. Going back it takes up to
six times as long as in float32 for rows of some tens of tokens, and as long for rows of hundreds.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.autograd import Function
from torch.nn.attention import SDPBackend

_HALF = (torch.bfloat16, torch.float16)
_ATTEND = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_GRADIENTS = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def takes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, dropout: float) -> bool:
    """Return whether gradients are wanted of 16 bits on a CPU, by queries, keys and values.

    Not where torch itself would have no fused kernel: with dropout, or of heads of two widths. Nor
    of a plan's tensors, which have no numbers and may stand for a GPU's.
    """
    if query.device.type != "cpu" or type(query) is not torch.Tensor:
        return False
    if dropout or not torch.is_grad_enabled() or _dtype(query) not in _HALF:
        return False
    plain = all(tensor.stride(-1) == 1 and tensor.numel() for tensor in (query, key, value))
    return plain and query.shape[-1] == key.shape[-1] == value.shape[-1] and is_there()


@functools.cache
def is_there() -> bool:
    """Return whether this torch takes its fused kernel on a CPU, masked or in groups of heads."""
    query = torch.empty(1, 2, 2, 8, dtype=torch.bfloat16, device="cpu")
    key, mask = query[:, :1], torch.ones(2, 2, dtype=torch.bool, device="cpu")
    chosen = (
        torch._fused_sdp_choice(query, query, query, attn_mask=mask),
        torch._fused_sdp_choice(query, key, key, is_causal=True, enable_gqa=True),
    )
    return set(chosen) == {SDPBackend.FLASH_ATTENTION.value}


def attend(
    query_BHTD: torch.Tensor,
    key_BHSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    *,
    is_causal: bool = False,
    attn_mask: torch.Tensor | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Return scaled_dot_product_attention, (B, H, T, D).

    Forward it has that function's bits. attn_mask: (T, S), true where a query may attend.
    enable_gqa: of no effect, the kernel takes keys of fewer heads as they are.
    """
    dtype = _dtype(query_BHTD)
    apply: Any = _Attention.apply
    tensors = (tensor.to(dtype) for tensor in (query_BHTD, key_BHSD, value_BHSD))
    out_BHTD: torch.Tensor = apply(*tensors, attn_mask, is_causal, scale)
    return out_BHTD


def _dtype(query: torch.Tensor) -> torch.dtype:
    """Return the type in which attention is computed."""
    if torch.is_autocast_enabled(query.device.type) and query.dtype != torch.float64:
        return torch.get_autocast_dtype(query.device.type)
    return query.dtype


class _Attention(Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        seen_TS: torch.Tensor | None,
        is_causal: bool,
        scale: float | None,
    ) -> torch.Tensor:
        mask = _added(seen_TS, query.dtype)
        out, logsumexp = _ATTEND(query, key, value, 0.0, is_causal, attn_mask=mask, scale=scale)
        ctx.save_for_backward(query, key, value, out, logsumexp, seen_TS)
        ctx.is_causal, ctx.scale = is_causal, scale
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *tensors, logsumexp, seen_TS = ctx.saved_tensors
        dtype, mask = grads[0].dtype, _added(seen_TS, torch.float32)
        wide = [tensor.float() for tensor in (grads[0], *tensors)]
        found = _GRADIENTS(
            *wide, logsumexp.float(), 0.0, ctx.is_causal, attn_mask=mask, scale=ctx.scale
        )
        return (*(grad.to(dtype) for grad in found), None, None, None)


def _added(seen_TS: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Return what is added to scores so that only what is seen counts."""
    if seen_TS is None:
        return None
    mask = torch.zeros(seen_TS.shape, dtype=dtype, device=seen_TS.device)
    return mask.masked_fill_(~seen_TS, -torch.inf)
