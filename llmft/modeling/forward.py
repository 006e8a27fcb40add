"""From token rows to the negative log-likelihood of their labels, with as little work as possible.

Rows are laid end to end where the model's attention keeps them apart (no padding is computed), and
padded on the right otherwise. Logits are made at label positions only, and for a large vocabulary a
few positions at a time.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from llmft.api import Encoded
from llmft.modeling.batching import batched, is_padding_free, on_device, padded, padding_free_inputs
from llmft.modeling.frozen_head import frozen_head_nll, is_frozen
from llmft.modeling.head_pieces import rows_at_once
from llmft.modeling.last_layer import narrowed
from llmft.modeling.levers import levers_of

# Logits held at once, in numbers: 2**24 float32 are 64 MiB. On a GPU 2 GiB, beside half as much.
LOGITS_AT_ONCE, ON_A_GPU = 2**24, 2**29


@dataclass(frozen=True, slots=True)
class LabelNll:
    """Negative log-likelihoods of N labels, in nats (float32), and the row (0..B-1) of each."""

    nll_N: torch.Tensor
    row_N: torch.Tensor

    def per_row(self, rows: int) -> torch.Tensor:
        """Return the sum over each row's labels, shape (B,)."""
        return self.nll_N.new_zeros(rows).index_add(0, self.row_N, self.nll_N)


def label_nll(
    model: Any,
    rows: Sequence[Encoded],
    shared: Sequence[tuple[int, int]] | None = None,
    *,
    label_smoothing: float = 0.0,
) -> LabelNll:
    """Return the negative log-likelihood of every label in the rows, given what stands before it.

    model: a causal language model as transformers has it, or an adapter's module that answers
        like one.
    shared: for each row (j, n): its first n tokens are those of the earlier row j, and need not be
        computed again where rows are laid end to end; n = 0 where nothing is shared. Only for
        adapters that declare `supports_shared_prompt`.
    label_smoothing: the share of each label that is spread evenly over all tokens (Szegedy et al.
        2015), as torch's cross_entropy has it.
    Raises ValueError if no row has a label.
    """
    laid = batched(model, rows, shared)
    labels_N = laid.labels_N
    smoothed = label_smoothing > 0
    head = (splittable_head if smoothed else _separable_head)(model, len(labels_N))
    if head is None:
        logits_NV = laid.of_labels(logits_at(model, laid.inputs, laid.keep))
        nll_N = _nll(logits_NV, labels_N, label_smoothing)
        return LabelNll(nll_N, laid.row_N)
    with identity(head):
        hidden_ND = laid.of_labels(logits_at(model, laid.inputs, laid.keep))
    size = rows_at_once(hidden_ND, head.weight.shape[0], LOGITS_AT_ONCE, ON_A_GPU)
    if is_frozen(head) and not smoothed:
        return LabelNll(frozen_head_nll(head, hidden_ND, labels_N, size), laid.row_N)
    pieces = zip(torch.split(hidden_ND, size), torch.split(labels_N, size), strict=True)
    nll = [
        checkpoint(_head_nll, head, h, y, label_smoothing, use_reentrant=False) for h, y in pieces
    ]
    return LabelNll(torch.cat(nll), laid.row_N)


def last_hidden(
    model: Any, rows: Sequence[Encoded], shared: Sequence[tuple[int, int]] | None = None
) -> torch.Tensor:
    """Return what the output layer reads at each row's last token, shape (B, D).

    model, shared: as for `label_nll`. The output layer itself is not computed.
    """
    packed = is_padding_free(model)
    shared = shared if levers_of(model).shared_prompt else None
    inputs = padding_free_inputs(rows, shared)[0] if packed else padded(rows)[0]
    line = torch.arange(len(rows))
    if packed:
        at, line = inputs["cu_seq_lens_q"][1:].long() - 1, torch.zeros_like(line)
    else:
        at = inputs["attention_mask"].sum(1) - 1
    keep, column = torch.unique(at - inputs["input_ids"].shape[1], return_inverse=True)
    inputs, (line, keep, column) = on_device(model, inputs, [line, keep, column])
    head = model.get_output_embeddings()
    if levers_of(model).identity_head and not _changes_logits(model.config):
        with identity(head):
            hidden = logits_at(model, inputs, keep)
    else:  # the layer's input does not come out as it went in
        with read_by(head) as read:
            logits_at(model, inputs, keep)
        hidden = read[-1]
        hidden = hidden if hidden.shape[1] == len(keep) else hidden[:, keep]
    return hidden[line, column]


def head_input(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Return what the output layer reads of one row in a plain forward pass, shape (1, T, D)."""
    device = next(model.parameters()).device
    with read_by(model.get_output_embeddings()) as read:
        model(input_ids=torch.tensor([list(ids)], device=device), use_cache=False)
    return read[-1]


@contextmanager
def read_by(layer: Any) -> Iterator[list[torch.Tensor]]:
    """Collect what a layer is given."""
    read: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    try:
        yield read
    finally:
        hook.remove()


def _head_nll(
    head: Any, hidden_ND: torch.Tensor, labels_N: torch.Tensor, smoothing: float
) -> torch.Tensor:
    return _nll(head(hidden_ND), labels_N, smoothing)


def _nll(logits_NV: torch.Tensor, labels_N: torch.Tensor, smoothing: float) -> torch.Tensor:
    return F.cross_entropy(logits_NV.float(), labels_N, reduction="none", label_smoothing=smoothing)


def logits_at(model: Any, inputs: dict[str, torch.Tensor], keep: torch.Tensor) -> torch.Tensor:
    """Return the model's output at the positions `keep`, shape (B, len(keep), V).

    keep: counted from the end: -1 is the last.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    with narrowed(model, keep, inputs["input_ids"].shape[1]):
        if "logits_to_keep" in inspect.signature(base.forward).parameters:
            out: torch.Tensor = model(**inputs, use_cache=False, logits_to_keep=keep).logits
            return out
        whole: torch.Tensor = model(**inputs, use_cache=False).logits
        return whole[:, keep]


def _separable_head(model: Any, n_labels: int) -> Any:
    """Return the output layer if its loss is cheaper without the model's own logits: see below."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not levers_of(model).frozen_head:
        return None
    if is_frozen(head) and not _changes_logits(model.config):
        return head
    return splittable_head(model, n_labels)


def splittable_head(model: Any, n_labels: int) -> Any:
    """Return the output layer if its logits are too many to hold at once and may be split."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    weight = getattr(head, "weight", None)
    if not levers_of(model).frozen_head:
        return None
    if weight is None or n_labels * weight.shape[0] <= LOGITS_AT_ONCE:
        return None
    return None if _changes_logits(model.config) else head


def _changes_logits(config: Any) -> bool:
    """Return whether a model changes the logits after its output layer has made them."""
    reshaped = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    return any(getattr(config, name, None) for name in reshaped)


@contextmanager
def identity(head: Any) -> Iterator[None]:
    """Let a layer hand its input through, so that the model returns hidden states."""
    before = vars(head).get("forward")
    head.forward = lambda hidden: hidden
    try:
        yield
    finally:
        if before is None:
            del head.forward
        else:
            head.forward = before
