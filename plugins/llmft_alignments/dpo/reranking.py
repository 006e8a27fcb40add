"""Pairs made anew by a reward model: every prompt's answers are scored and set in order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from llmft.api import Encoded, EncodedPair, StageContext
from llmft.toolkit import rewards
from llmft_alignments.pairs import judging

if TYPE_CHECKING:
    import torch

Ids = tuple[int, ...]


def reranked(
    context: StageContext, pairs: Sequence[EncodedPair], reward_model: str
) -> list[EncodedPair]:
    """Return a pair for every two answers to a prompt, chosen by the rewards of an earlier stage.

    The answers are those of the given pairs, whichever side they stood on; prompts are the same
    where their tokens are. Answers of equal reward make no pair. The margin is the rewards' gap.
    """
    groups = answers_by_prompt(pairs)
    rows = [row for answers in groups for row in answers]
    scores = iter(score(context, rows, reward_model).tolist())
    found = []
    for answers in groups:
        scored = [(next(scores), row) for row in answers]
        for (one, first), (other, second) in combinations(scored, 2):
            if one == other:
                continue
            chosen, rejected = (first, second) if one > other else (second, first)
            shared = _shared(chosen.input_ids, rejected.input_ids)
            found.append(EncodedPair(chosen, rejected, shared, abs(one - other), chosen.origin))
    return found


def score(context: StageContext, rows: Sequence[Encoded], reward_model: str) -> torch.Tensor:
    """Return the reward of each row by an earlier stage's model, shape (R,), on the CPU."""
    import torch

    model = context.models.load_stage(reward_model)
    size = context.train.per_device_eval_batch_size
    found = []
    with judging(model):
        for start in range(0, len(rows), size):
            found.append(rewards(model, rows[start : start + size]).cpu())
            context.log.progress("rank answers", min(start + size, len(rows)), len(rows))
    return torch.cat(found)


def answers_by_prompt(pairs: Sequence[EncodedPair]) -> list[list[Encoded]]:
    """Return the different answers of each prompt, in the order in which they come."""
    groups: dict[Ids, dict[Ids, Encoded]] = {}
    for pair in pairs:
        for row in (pair.chosen, pair.rejected):
            prompt = row.input_ids[: row.labels.count(-100)]
            groups.setdefault(prompt, {}).setdefault(row.input_ids, row)
    return [list(answers.values()) for answers in groups.values()]


def _shared(one: Ids, other: Ids) -> int:
    """Return how many first tokens two rows share, leaving each one of its own at least."""
    most = min(len(one), len(other)) - 1
    return next((n for n in range(most) if one[n] != other[n]), most)
