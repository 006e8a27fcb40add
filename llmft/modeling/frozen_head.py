"""The loss of a frozen output layer over a large vocabulary, without keeping its logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def is_frozen(head: Any) -> bool:
    """Return whether an output layer is a plain linear one that nothing trains or hooks into."""
    if type(head) is not nn.Linear or head._forward_hooks or head._forward_pre_hooks:
        return False
    return not any(p.requires_grad for p in head.parameters())


def frozen_head_nll(
    head: nn.Linear, hidden_ND: torch.Tensor, labels_N: torch.Tensor, at_once: int
) -> torch.Tensor:
    """Return the negative log-likelihood of each label, shape (N,), float32.

    at_once: rows whose logits are held at a time. Where a gradient is wanted, it is computed beside
    the loss: every label's slope is d(nll)/d(hidden), D numbers, so that no logit is kept or made
    again. That needs the weight to be frozen, as it is under an adapter.
    """
    apply: Any = _FrozenHeadNll.apply
    nll_N: torch.Tensor = apply(hidden_ND, head.weight, head.bias, labels_N, at_once)
    return nll_N


class _FrozenHeadNll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_N: torch.Tensor,
        at_once: int,
    ) -> torch.Tensor:
        nll, slopes = [], []
        wanted = ctx.needs_input_grad[0]
        device = hidden_ND.device.type
        if torch.is_autocast_enabled(device) and weight_VD.dtype != torch.float64:
            weight_VD = weight_VD.to(torch.get_autocast_dtype(device))  # once, and not each time
        pieces = zip(torch.split(hidden_ND, at_once), torch.split(labels_N, at_once), strict=True)
        for hidden, labels in pieces:
            logits = nn.functional.linear(hidden, weight_VD, bias_V)
            for some, of_some in _in_a_cache(logits, labels):
                nll.append(_nll(some, of_some, slopes_too=wanted))
            if wanted:
                slopes.append(logits @ weight_VD)
        if slopes:
            ctx.save_for_backward(torch.cat(slopes).to(hidden_ND.dtype))
        return torch.cat(nll)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (slopes_ND,) = ctx.saved_tensors
        return (grads[0].unsqueeze(1) * slopes_ND).to(slopes_ND.dtype), None, None, None, None


def _nll(logits_NV: torch.Tensor, labels_N: torch.Tensor, *, slopes_too: bool) -> torch.Tensor:
    """Return each label's negative log-likelihood; its slope by the logits takes their place.

    Of the softmax's cross-entropy: p - 1 at the label, p elsewhere.
    """
    wide, at = logits_NV.float(), labels_N.unsqueeze(1)
    wide -= wide.amax(1, keepdim=True)
    right = wide.gather(1, at).squeeze(1)
    total = wide.exp_().sum(1)
    if slopes_too:
        wide /= total.unsqueeze(1)
        wide.scatter_add_(1, at, wide.new_full(at.shape, -1.0))
        if wide is not logits_NV:
            logits_NV.copy_(wide)
    return total.log() - right


_NEAR = 2**18
"""Logits that a core's cache holds through several walks."""


def _in_a_cache(
    logits_NV: torch.Tensor, labels_N: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield some rows at a time on a CPU, and all of them elsewhere, or of a plan's tensors."""
    rows = len(logits_NV)
    if logits_NV.device.type == "cpu" and type(logits_NV) is torch.Tensor:
        rows = max(1, torch.get_num_threads() * _NEAR // logits_NV.shape[1])
    yield from zip(torch.split(logits_NV, rows), torch.split(labels_N, rows), strict=True)
