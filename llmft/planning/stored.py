"""What of a base model's files stays in memory beside its weights."""

from __future__ import annotations

from math import prod
from typing import Any

from llmft.api.model_settings import ModelSource

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number."""


def mapped_bytes(model: Any, source: ModelSource, stored: str) -> int:
    """Return the bytes of the weights' files that stay in sight of the process beside the weights.

    Where some tensors are used as they lie in the file, it stays open, and with it the pages of
    those that were read once, to be quantised. The kernel may drop them.
    """
    if stored != source.dtype:
        return 0
    numbers = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            numbers += prod(state.shape)
        elif getattr(parameter, "CB", None) is not None:
            numbers += parameter.numel()
    return numbers * WIDTHS.get(stored, 4)
