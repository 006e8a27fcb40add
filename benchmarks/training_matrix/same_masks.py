"""Dropout whose masks are the same however rows are laid, so that losses with it can be compared.

A number is dropped by its feature, and not by its place in a batch: rows alone, padded and laid
end to end lose the same ones. Attention's own weights, whose places are the layout's, keep all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F


@lru_cache(maxsize=256)
def _mask(width: int, p: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(width)
    return torch.empty(width).bernoulli_(1 - p, generator=generator) / (1 - p)


def _dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    # Attention's weights: (B, heads, T, T), or (B heads, T, T).
    of_heads = input.dim() == 4 and input.shape[1] > 1
    of_heads |= input.dim() == 3 and input.shape[1] == input.shape[2]
    if not training or not p or of_heads:
        return input
    return input * _mask(input.shape[-1], p).to(input.dtype)


@contextmanager
def same_masks() -> Iterator[None]:
    """Let every dropout in this process be such a one for a while."""
    from llmft_adapters.lora import dropout_mask

    attend = F.scaled_dot_product_attention

    def attending(*given: Any, dropout_p: float = 0.0, **named: Any) -> torch.Tensor:
        return attend(*given[:4], dropout_p=0.0, **named)

    def drawing(rows: int, width: int, p: float, dtype: torch.dtype) -> torch.Tensor:
        return _mask(width, p).to(dtype).expand(rows, width)

    with ExitStack() as replaced:
        for holder, name, own in (
            (F, "dropout", _dropout), (F, "scaled_dot_product_attention", attending),
            (dropout_mask, "draw", drawing),
        ):  # fmt: skip
            replaced.enter_context(patch.object(holder, name, own))
        yield
