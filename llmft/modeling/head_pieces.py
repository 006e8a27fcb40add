"""For how many rows at a time an output layer's logits are made.

Each piece reads the layer's weight anew, and its logits have to be held. A CPU gains nothing by
large pieces; a GPU reads a gigabyte of an 8B model's weight for each, and starts some kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

ROWS_ON_A_GPU = 4096
_as_on_a_gpu: ContextVar[bool] = ContextVar("_as_on_a_gpu", default=False)


def rows_at_once(states: torch.Tensor, words: int, numbers: int, on_a_gpu: int) -> int:
    """Return for how many rows of states the logits over so many words are made at a time.

    numbers: how many logits are held at once; on_a_gpu: how many there, of 4,096 rows at most.
    """
    if states.device.type == "cuda" or _as_on_a_gpu.get():
        return max(1, min(ROWS_ON_A_GPU, on_a_gpu // words))
    return max(1, numbers // words)


@contextmanager
def planned_for_a_gpu() -> Iterator[None]:
    """Let tensors without numbers be taken as a GPU's."""
    before = _as_on_a_gpu.set(True)
    try:
        yield
    finally:
        _as_on_a_gpu.reset(before)
