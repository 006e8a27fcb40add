"""Turning dropout off where a method needs the same numbers from the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

# A layer of transformers may keep its attention's dropout as a number.
_NUMBERS = ("attention_dropout", "attn_dropout", "attention_probs_dropout_prob", "dropout")


@contextmanager
def without_dropout(model: Any) -> Iterator[int]:
    """Set every dropout of a model to 0 for a while; gives how many had another."""
    changed: list[tuple[Any, str, Any]] = []
    for module in model.modules():
        names = ("p",) if isinstance(module, _DropoutNd) else _NUMBERS
        if isinstance(module, nn.RNNBase):
            names = ("dropout",)
        for name in names:
            value = module.__dict__.get(name)
            if isinstance(value, float) and value > 0:
                changed.append((module, name, value))
    for module, name, _ in changed:
        setattr(module, name, 0.0)
    try:
        yield len(changed)
    finally:
        for module, name, value in changed:
            setattr(module, name, value)
