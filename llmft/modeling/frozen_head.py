"""The loss of a frozen output layer over a large vocabulary, without keeping its logits."""

from __future__ import annotations

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
        pieces = zip(torch.split(hidden_ND, at_once), torch.split(labels_N, at_once), strict=True)
        for hidden, labels in pieces:
            logits = nn.functional.linear(hidden, weight_VD, bias_V).float()
            logits -= logits.amax(1, keepdim=True)
            at = labels.unsqueeze(1)
            right = logits.gather(1, at).squeeze(1)
            total = logits.exp_().sum(1)
            nll.append(total.log() - right)
            if ctx.needs_input_grad[0]:
                # Of the softmax's cross-entropy: p - 1 at the label, p elsewhere.
                logits /= total.unsqueeze(1)
                logits.scatter_add_(1, at, logits.new_full(at.shape, -1.0))
                slopes.append(logits.to(weight_VD.dtype) @ weight_VD)
        if slopes:
            ctx.save_for_backward(torch.cat(slopes).to(hidden_ND.dtype))
        return torch.cat(nll)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (slopes_ND,) = ctx.saved_tensors
        return (grads[0].unsqueeze(1) * slopes_ND).to(slopes_ND.dtype), None, None, None, None
