"""How preference training starts: dropout off, and the policy where its reference is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmft.api import StageContext, StageError
from llmft.toolkit import without_dropout
from llmft_alignments.pairs import CHECKED, answer_logps, token_counts

if TYPE_CHECKING:
    import torch

# Nats by which a token's log-likelihood may be off by rounding; over T tokens, sqrt(T) times that.
# A batch is compared with itself, so in float32 nearly nothing is.
FULL, HALF = 2e-3, 0.05


@contextmanager
def dropout_off(context: StageContext, off: bool) -> Iterator[None]:
    """Turn the model's dropout off for a while, and say so where there was any."""
    if not off:
        yield
        return
    with without_dropout(context.models.model) as dropped:
        if dropped:
            context.log.note("dropout is off in training (disable_dropout: true)")
        yield


def refuse_other_start(
    context: StageContext,
    items: Sequence[Any],
    reference: torch.Tensor,
    first_step: Callable[[Sequence[Any], torch.Tensor, torch.Tensor], str],
) -> None:
    """Raise StageError unless the policy, not yet trained, answers as its reference does.

    Nothing is asked where the two need not be equal. The first items, pairs or rows, are computed
    as a training step would, with dropout off, batched as their reference was. reference: summed
    log-likelihoods, (P, 2) of pairs and (R,) of rows. first_step: says what is wrong, from the
    items, and the policy's and the reference's log-likelihoods of them.
    """
    if not context.models.starts_as_reference:
        return
    some = items[: min(CHECKED, context.train.per_device_eval_batch_size)]
    with _as_in_training(context):
        logps = answer_logps(context.models.model, some, context.models.shares_prompts)
    policy, start = logps.float().cpu(), reference[: len(some)]
    moved = (policy - start).abs()
    if bool((moved > tolerance(context) * token_counts(some, policy).sqrt()).any()):
        raise other_start(first_step(some, policy, start))


def apart(moved_N: torch.Tensor, context: StageContext, times: float = 1.0) -> bool:
    """Return whether the log-likelihoods of N tokens have moved, together, by more than rounding.

    times: by how much rounding may be larger than that of a batch compared with itself.
    """
    allowed = times * tolerance(context) * len(moved_N) ** 0.5
    return bool(moved_N.double().sum().abs() > allowed)


def tolerance(context: StageContext) -> float:
    """Return by how many nats rounding may move a token, in the precision that the model has."""
    import torch

    whole = (torch.float32, torch.float64)
    half = any(parameter.dtype not in whole for parameter in context.models.model.parameters())
    return HALF if context.train.bf16 or half else FULL


def other_start(what: str) -> StageError:
    """Return the error of a policy that does not start as its reference."""
    return StageError(
        "E307",
        f"before the first step the policy is not its reference: {what}",
        fix="write model.attn_implementation: eager, and report the model's name",
    )


@contextmanager
def _as_in_training(context: StageContext) -> Iterator[None]:
    import torch

    model: Any = context.models.model
    training = model.training
    model.train()
    try:
        with without_dropout(model), torch.no_grad(), context.models.precision():
            yield
    finally:
        model.train(training)
