"""Answers through a model: their log-likelihoods, a pair's prompt computed once where it can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from llmft.api import DataError, Encoded, EncodedPair, StageContext
from llmft.toolkit import dealt, label_nll, tensor_like

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
Laid = tuple[list[Encoded], list[tuple[int, int]] | None]


CHECKED = 2
"""Items whose reference is computed in a batch of their own, for the policy to be held against."""


def laid(pairs: Sequence[EncodedPair], share: bool) -> Laid:
    """Return the pairs' rows, chosen before rejected, and what each shares with an earlier row.

    share: whether the prompt may be computed once for both, as `StageContext.shares_prompts` says.
    """
    rows = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
    if not share:
        return rows, None
    shared = [
        entry for number, pair in enumerate(pairs) for entry in ((0, 0), (2 * number, pair.shared))
    ]
    return rows, shared


def pair_nll(
    model: Any, pairs: Sequence[EncodedPair], share: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the NLL of every answer token, shape (N,), and the row, 0..2B-1, of each."""
    rows, shared = laid(pairs, share)
    found = label_nll(model, rows, shared)
    return found.nll_N, found.row_N


def token_counts(items: Sequence[EncodedPair | Encoded], like: torch.Tensor) -> torch.Tensor:
    """Return how many tokens each answer has, as a tensor like another.

    Of pairs, shape (B, 2); of rows, (B,).
    """
    counts = [
        [item.chosen.n_labels, item.rejected.n_labels]
        if isinstance(item, EncodedPair)
        else item.n_labels
        for item in items
    ]
    return tensor_like(counts, like)


def tokens_of(batch: Sequence[EncodedPair]) -> float:
    """Return how many tokens a batch of pairs has, prompts counted twice."""
    return float(sum(len(p.chosen.input_ids) + len(p.rejected.input_ids) for p in batch))


def per_answer(value_N: torch.Tensor, row_N: torch.Tensor, pairs: int) -> torch.Tensor:
    """Return the sum of a value of each token over each answer, shape (B, 2)."""
    return value_N.new_zeros(2 * pairs).index_add(0, row_N, value_N).view(pairs, 2)


def pair_logps(model: Any, pairs: Sequence[EncodedPair], share: bool) -> torch.Tensor:
    """Return the summed log-likelihood of each answer, shape (B, 2): chosen, rejected."""
    nll_N, row_N = pair_nll(model, pairs, share)
    return -per_answer(nll_N, row_N, len(pairs))


def row_logps(model: Any, rows: Sequence[Encoded]) -> torch.Tensor:
    """Return the summed log-likelihood of each row's answer, shape (B,)."""
    return -label_nll(model, rows).per_row(len(rows))


def answer_logps(model: Any, items: Sequence[Any], share: bool) -> torch.Tensor:
    """Return `pair_logps` of pairs, and `row_logps` of rows."""
    if isinstance(items[0], EncodedPair):
        return pair_logps(model, items, share)
    return row_logps(model, items)


@contextmanager
def judging(model: Any) -> Iterator[None]:
    """Let the model answer in evaluation mode and without gradients for a while."""
    import torch

    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def over_batches(
    context: StageContext,
    items: Sequence[Item],
    compute: Callable[[Sequence[Item]], torch.Tensor],
    phase: str,
    *,
    first: int = 0,
) -> torch.Tensor:
    """Return what `compute` gives for batches of items, end to end on the CPU, no gradients.

    Several processes share the batches where all of them compute this together. first: items of a
    smaller batch before the others.
    """
    import torch

    size = context.train.per_device_eval_batch_size
    bounds = [0, *range(min(first, size), len(items), size), len(items)]
    batches = [items[start:end] for start, end in pairwise(bounds) if start < end]

    def tell(done: int) -> None:
        context.log.progress(phase, sum(map(len, batches[:done])), len(items))

    with judging(context.models.model):
        tell(0)
        found = dealt(batches, lambda some: compute(some).float().cpu(), tell, alike=True)
    return torch.cat(found)


PREFERENCES = {"preference_accuracy": True, "preference_margin": True}
"""Of what `HeldOut.preferences` measures, whether more is better."""


class HeldOut:
    """The held-out pairs of a stage, encoded once, and how the policy judges them."""

    def __init__(self) -> None:
        self._pairs: list[EncodedPair] | None = None

    def pairs(self, context: StageContext) -> list[EncodedPair]:
        """Return the held-out pairs; none where the recipe does not evaluate."""
        if self._pairs is None:
            rows = context.data.held_out()
            self._pairs = context.data.encode_pairs(rows) if rows else []
        return self._pairs

    def logps(self, context: StageContext) -> torch.Tensor:
        """Return the policy's summed log-likelihood of each held-out answer, shape (P, 2)."""
        model, share = context.models.model, context.models.shares_prompts
        return over_batches(
            context, self.pairs(context), lambda some: pair_logps(model, some, share), "judge pairs"
        )

    def preferences(self, context: StageContext) -> dict[str, list[float]]:
        """Return of each pair whether, and by how many nats, the chosen answer is the likelier one.

        A tie counts as wrong.
        """
        return preferences_of(self.logps(context)) if self.pairs(context) else {}


def preferences_of(logps_P2: torch.Tensor) -> dict[str, list[float]]:
    """Return `HeldOut.preferences` of log-likelihoods."""
    gap_P = (logps_P2[:, 0] - logps_P2[:, 1]).double()
    return {
        "preference_accuracy": (gap_P > 0).double().tolist(),
        "preference_margin": gap_P.tolist(),
    }


def refuse_few(pairs: Sequence[EncodedPair], stage: str) -> None:
    """Raise DataError where no pair is left to learn from."""
    if not pairs:
        raise DataError("E105", f"stage '{stage}' has no pair of answers to train on")
