"""What is counted for people: a model's parameters, and the rows and tokens of an item."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from llmft.api import Encoded, EncodedPair


def count_parameters(model: Any) -> tuple[int, int]:
    """Return (trainable, total) parameters; packed 4-bit weights count as what they stand for."""
    trainable = total = 0
    for parameter in model.parameters():
        count = _stands_for(parameter)
        total += count
        if parameter.requires_grad:
            trainable += count
    return trainable, total


def _stands_for(parameter: Any) -> int:
    state = getattr(parameter, "quant_state", None)
    if state is not None and getattr(state, "shape", None) is not None:
        return prod(state.shape)
    count: int = parameter.numel()
    return count


def token_rows(item: Any) -> Sequence[Encoded]:
    """Return the token rows in an item that is trained on, to be counted."""
    if isinstance(item, tuple):  # packed
        return [row for one in item for row in token_rows(one)]
    if isinstance(item, EncodedPair):
        return (item.chosen, item.rejected)
    return (item,) if isinstance(item, Encoded) else ()


def tokens_in(item: Any) -> int:
    """Return how many tokens an item has, both answers of a pair counted."""
    return sum(len(row.input_ids) for row in token_rows(item))
