"""What policy gradients read at each generated token: its log-likelihood, the entropy, the state.

One forward pass as `llmft.modeling.forward` makes it: rows end to end where they may be, and logits
at the generated tokens only. Under a frozen output layer they are made a few positions at a time,
and none is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from llmft.api import Encoded
from llmft.modeling import forward
from llmft.modeling.batching import batched
from llmft.modeling.frozen_head import is_frozen
from llmft.modeling.head_pieces import rows_at_once

# Of the softmax three copies are held for a moment: 2**20 numbers are 4 MiB each. But with too few
# rows a matrix product is slow.
LOGITS_AT_ONCE, LEAST_ROWS = 2**20, 64
ON_A_GPU = 2**27  # 512 MiB each

# In the place of a logit outside the nucleus: e to its power is 0, and times 0 it is no nan.
OUTSIDE = -1e30

Nuclei = Sequence[torch.Tensor]


@dataclass(frozen=True, slots=True)
class TokenStats:
    """Of N labels: log-likelihood and entropy in nats (float32), the state before it, its row.

    hidden_ND: what the output layer reads where the token is predicted.
    """

    logps_N: torch.Tensor
    entropy_N: torch.Tensor
    hidden_ND: torch.Tensor
    row_N: torch.Tensor


def token_stats(
    model: Any,
    rows: Sequence[Encoded],
    temperature: float = 1.0,
    *,
    entropy_gradient: bool = False,
    shared: Sequence[tuple[int, int]] | None = None,
    nuclei: Nuclei | None = None,
) -> TokenStats:
    """Return the stats of every label in the rows, under the distribution at a temperature.

    Gradients flow through log-likelihoods and states, and through the entropy if
    `entropy_gradient`. model, shared: as for `label_nll`. nuclei: for each label, the ids among
    which the distribution is; default: all. Raises ValueError if no row has a label.
    """
    laid = batched(model, rows, shared)
    labels, row = laid.labels_N, laid.row_N
    head = forward.splittable_head(model, forward.LOGITS_AT_ONCE)  # whatever their number
    few = head is not None and len(labels) * head.weight.shape[0] <= forward.LOGITS_AT_ONCE
    if head is None or (few and not is_frozen(head)):
        with forward.read_by(model.get_output_embeddings()) as read:
            logits_NV = laid.of_labels(forward.logits_at(model, laid.inputs, laid.keep))
        hidden = read[-1]
        # An architecture without logits_to_keep computes them at every position.
        hidden = hidden if hidden.shape[1] == len(laid.keep) else hidden[:, laid.keep]
        hidden_ND = laid.of_labels(hidden)
        logps_N, entropy_N = _of_logits(logits_NV, labels, temperature, entropy_gradient, nuclei)
        return TokenStats(logps_N, entropy_N, hidden_ND, row)
    with forward.identity(head):
        hidden_ND = laid.of_labels(forward.logits_at(model, laid.inputs, laid.keep))
    words = head.weight.shape[0]
    size = max(LEAST_ROWS, rows_at_once(hidden_ND, words, LOGITS_AT_ONCE, ON_A_GPU))
    if is_frozen(head):
        apply: Any = _FrozenHeadStats.apply
        options = (temperature, size, entropy_gradient, nuclei)
        logps_N, entropy_N = apply(hidden_ND, head.weight, head.bias, labels, *options)
        return TokenStats(logps_N, entropy_N, hidden_ND, row)
    pieces = [
        checkpoint(_of_hidden, head, h, y, temperature, entropy_gradient, n, use_reentrant=False)
        for h, y, n in _pieces(hidden_ND, labels, nuclei, size)
    ]
    logps_N, entropy_N = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return TokenStats(logps_N, entropy_N, hidden_ND, row)


def _pieces(
    hidden_ND: torch.Tensor, labels_N: torch.Tensor, nuclei: Nuclei | None, size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, Nuclei | None]]:
    starts = range(0, len(labels_N), size)
    cut = [nuclei[start : start + size] if nuclei else None for start in starts]
    return zip(torch.split(hidden_ND, size), torch.split(labels_N, size), cut, strict=True)


def _outside(logits_NV: torch.Tensor, nuclei: Nuclei) -> torch.Tensor:
    """Return the mask (N, V) of the tokens that are in no label's nucleus."""
    device = logits_NV.device
    row = torch.arange(len(nuclei)).repeat_interleave(torch.tensor([len(ids) for ids in nuclei]))
    outside_NV = torch.ones_like(logits_NV, dtype=torch.bool)
    outside_NV[row.to(device), torch.cat(list(nuclei)).long().to(device)] = False
    return outside_NV


def _of_logits(
    logits_NV: torch.Tensor,
    labels_N: torch.Tensor,
    temperature: float,
    entropy_gradient: bool,
    nuclei: Nuclei | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    logits_NV = logits_NV.float() / temperature
    if nuclei is not None:
        logits_NV = logits_NV.masked_fill(_outside(logits_NV, nuclei), OUTSIDE)
    logps_NV = torch.log_softmax(logits_NV, dim=1)
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropy_N = -(logps_NV.exp() * logps_NV).sum(1)
    return logps_NV.gather(1, labels_N.unsqueeze(1)).squeeze(1), entropy_N


def _of_hidden(
    head: Any,
    hidden_ND: torch.Tensor,
    labels_N: torch.Tensor,
    temperature: float,
    entropy_gradient: bool,
    nuclei: Nuclei | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _of_logits(head(hidden_ND), labels_N, temperature, entropy_gradient, nuclei)


class _FrozenHeadStats(torch.autograd.Function):
    """Log-likelihood and entropy under a frozen linear layer; no logit is kept or made again.

    Where a gradient is wanted, the slopes with respect to the hidden state are computed beside
    them: D numbers each.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_N: torch.Tensor,
        temperature: float,
        at_once: int,
        entropy_gradient: bool,
        nuclei: Nuclei | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        of_logp: list[torch.Tensor] = []
        of_entropy: list[torch.Tensor] = []
        for hidden, labels, kept in _pieces(hidden_ND, labels_N, nuclei, at_once):
            logits = torch.nn.functional.linear(hidden, weight_VD, bias_V).float().div_(temperature)
            if kept is not None:
                logits.masked_fill_(_outside(logits, kept), OUTSIDE)
            logps = torch.log_softmax(logits, dim=1)
            del logits
            p = logps.exp()
            at = labels.unsqueeze(1)
            with torch.autocast(p.device.type, enabled=False):  # it would be rounded to 16 bits
                entropy = -torch.linalg.vecdot(p, logps)
            found.append((logps.gather(1, at).squeeze(1), entropy))
            if not ctx.needs_input_grad[0]:
                continue
            if entropy_gradient:  # d(entropy)/d(logit) = -p (log p + entropy)
                uncertain = logps.add_(entropy.unsqueeze(1)).mul_(p).neg_()
                of_entropy.append(uncertain.to(weight_VD.dtype) @ weight_VD / temperature)
            # d(log p_y)/d(logit) = [y] - p
            taken = p.neg_().scatter_add_(1, at, p.new_ones(at.shape))
            of_logp.append(taken.to(weight_VD.dtype) @ weight_VD / temperature)
        slopes = [torch.cat(parts).to(hidden_ND.dtype) for parts in (of_logp, of_entropy) if parts]
        ctx.save_for_backward(*slopes)
        logps_N, entropy_N = (torch.cat(parts) for parts in zip(*found, strict=True))
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy_N)
        return logps_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        pairs = zip(grads, ctx.saved_tensors, strict=False)
        slope = sum(grad.unsqueeze(1) * of_one_ND for grad, of_one_ND in pairs)
        hidden = slope.to(ctx.saved_tensors[0].dtype)
        return hidden, None, None, None, None, None, None, None
