"""The layers that have a row for each token: the embedding and the output layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def vocabulary_layers(model: Any) -> list[tuple[str, Any]]:
    """Return the embedding and, where it has weights of its own, the output layer, by name.

    A model that classifies has no output layer of tokens.
    """
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    tied = output is None or output.weight is embedding.weight
    ends = [embedding] if tied else [embedding, output]
    names = {id(module): name for name, module in model.named_modules()}
    return [(names[id(end)], end) for end in ends]


def is_within(name: str, blocks: Iterable[str]) -> bool:
    """Return whether a layer is one of some blocks, or in one."""
    return any(name == block or name.startswith(f"{block}.") for block in blocks)
