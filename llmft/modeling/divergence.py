"""How far a model's distribution over the next token is from another's, at each label.

Both read the same rows. The logits of both are made a few positions at a time, and none is kept:
the backward pass makes the trained model's again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from llmft.api import Encoded
from llmft.modeling import forward
from llmft.modeling.batching import batched
from llmft.modeling.head_pieces import rows_at_once
from llmft.modeling.token_stats import LEAST_ROWS, LOGITS_AT_ONCE, ON_A_GPU, OUTSIDE


@dataclass(frozen=True, slots=True)
class Divergence:
    """Of N labels: the divergence in nats (float32), and the row (0..B-1) of each."""

    nats_N: torch.Tensor
    row_N: torch.Tensor


def divergence(
    model: Any, other: Any, rows: Sequence[Encoded], beta: float = 0.5, temperature: float = 1.0
) -> Divergence:
    """Return the generalised Jensen-Shannon divergence of two models at every label in the rows.

    With P the other's distribution, Q the model's, and M = beta P + (1 - beta) Q, it is
    beta KL(P || M) + (1 - beta) KL(Q || M) (Agarwal et al. 2024, arXiv:2306.13649, equation 1);
    beta 0 is KL(P || Q), and beta 1 is KL(Q || P), as TRL has them. Gradients flow through the
    model. Where one has more logits than the other, as padding of its embedding, they are left out.
    temperature: what the logits of both are divided by. Raises ValueError if no row has a label.
    """
    ours = _read(model, rows)
    with torch.no_grad():
        theirs = _read(other, rows)
    most = max(ours.words, theirs.words)
    size = max(LEAST_ROWS, rows_at_once(ours.states_NX, most, LOGITS_AT_ONCE, ON_A_GPU))
    pieces = zip(
        torch.split(ours.states_NX, size), torch.split(theirs.states_NX, size), strict=True
    )
    words = min(ours.words, theirs.words)
    options = (ours.head, theirs.head, words, beta, temperature)
    found = [checkpoint(_of_states, own, held, *options, use_reentrant=False)
             for own, held in pieces]  # fmt: skip
    return Divergence(torch.cat(found), ours.row_N)


@dataclass(frozen=True, slots=True)
class _Read:
    """What an output layer reads at N labels, row after row; its logits where `head` is None."""

    states_NX: torch.Tensor
    head: Any
    words: int
    row_N: torch.Tensor


def _read(model: Any, rows: Sequence[Encoded]) -> _Read:
    laid = batched(model, rows, None)
    head = forward.splittable_head(model, forward.LOGITS_AT_ONCE)  # whatever their number
    if head is None:
        logits_NV = laid.of_labels(forward.logits_at(model, laid.inputs, laid.keep))
        return _Read(logits_NV, None, logits_NV.shape[1], laid.row_N)
    with forward.identity(head):
        states_ND = laid.of_labels(forward.logits_at(model, laid.inputs, laid.keep))
    return _Read(states_ND, head, head.weight.shape[0], laid.row_N)


def _of_states(
    own_NX: torch.Tensor,
    held_NX: torch.Tensor,
    head: Any,
    other_head: Any,
    words: int,
    beta: float,
    temperature: float,
) -> torch.Tensor:
    q_NV = _log_softmax(own_NX if head is None else head(own_NX), words, temperature)
    with torch.no_grad():
        logits = held_NX if other_head is None else other_head(held_NX)
        p_NV = _log_softmax(logits, words, temperature)
    if beta == 0:
        return _kl(p_NV, q_NV)
    if beta == 1:
        return _kl(q_NV, p_NV)
    # The gradient of logaddexp at two infinities, of a token that both models mask, is no number.
    seen_p, seen_q = p_NV.clamp(min=OUTSIDE), q_NV.clamp(min=OUTSIDE)
    m_NV = torch.logaddexp(seen_p + math.log(beta), seen_q + math.log1p(-beta))
    return beta * _kl(p_NV, m_NV) + (1 - beta) * _kl(q_NV, m_NV)


def _log_softmax(logits_NV: torch.Tensor, words: int, temperature: float) -> torch.Tensor:
    return torch.log_softmax(logits_NV[:, :words].float() / temperature, dim=1)


def _kl(p_NV: torch.Tensor, q_NV: torch.Tensor) -> torch.Tensor:
    """Return KL(P || Q) of log-probabilities, shape (N,); a token that P never gives adds 0."""
    odds_NV = p_NV.exp()
    return (odds_NV * torch.where(odds_NV > 0, p_NV - q_NV, 0.0)).sum(1)
