"""The layers that have a row for each token: the embedding and the output layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def both_ends(model: Any) -> list[tuple[str, Any]]:
    """Return the embedding and the output layer, by name, also where they share their weights.

    A part of a model, which is none of transformers' own, has neither.
    """
    asked = (getattr(model, f"get_{end}_embeddings", None) for end in ("input", "output"))
    ends = [find() for find in asked if find is not None]
    names = {id(module): name for name, module in model.named_modules()}
    return [(names[id(end)], end) for end in ends if end is not None]


def vocabulary_layers(model: Any) -> list[tuple[str, Any]]:
    """Return the embedding and, where it has weights of its own, the output layer, by name.

    A model that classifies has no output layer of tokens.
    """
    ends = both_ends(model)
    return ends[:1] if ends[-1][1].weight is ends[0][1].weight else ends


def is_within(name: str, blocks: Iterable[str]) -> bool:
    """Return whether a layer is one of some blocks, or in one."""
    return any(name == block or name.startswith(f"{block}.") for block in blocks)
