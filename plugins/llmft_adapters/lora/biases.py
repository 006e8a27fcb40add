"""Biases that are trained, while the base's own are kept to be put back."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Kept = Sequence[tuple[Any, Any]]
"""Each module whose bias was replaced, and the bias that it had."""


def own_biases(model: Any, names: Collection[str] | None = None) -> Kept:
    """Replace the biases of the named modules (None: of all) by copies; return the originals."""
    import torch

    kept, copies = [], {}
    for name, module in model.named_modules():
        bias = module._parameters.get("bias")
        if bias is None or (names is not None and name not in names):
            continue
        if id(bias) not in copies:  # a bias may stand in two modules
            copies[id(bias)] = torch.nn.Parameter(bias.detach().clone(), requires_grad=False)
        module.bias = copies[id(bias)]
        kept.append((module, bias))
    return kept


@contextmanager
def put_back(kept: Kept) -> Iterator[None]:
    """Let the base have its own biases for a while."""
    trained = [module.bias for module, _ in kept]
    try:
        for module, bias in kept:
            module.bias = bias
        yield
    finally:
        for (module, _), bias in zip(kept, trained, strict=True):
            module.bias = bias
