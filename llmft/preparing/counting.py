"""How many parameters a model has, as a person counts them: 4-bit packing undone, ties once."""

from __future__ import annotations

from math import prod
from typing import Any


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
