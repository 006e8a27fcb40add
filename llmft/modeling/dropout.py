"""Turning dropout off where a method needs the same numbers from the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

_NOISE = ("drop", "jitter")
"""What a layer or a config calls the numbers of its noise: attention_dropout, resid_pdrop,
layerdrop, router_jitter_noise."""


@contextmanager
def without_dropout(model: Any) -> Iterator[int]:
    """Set every dropout of a model to 0 for a while; gives how many had another.

    Layers keep theirs as modules, as numbers of their own, or read them off the config each time.
    """
    changed: list[tuple[Any, str, Any]] = []
    for holder in _holders(model):
        for name, value in list(vars(holder).items()):
            named = name == "p" if isinstance(holder, _DropoutNd) else _is_noise(name)
            if named and isinstance(value, float) and value > 0:
                changed.append((holder, name, value))
    for holder, name, _ in changed:
        setattr(holder, name, 0.0)
    try:
        yield len(changed)
    finally:
        for holder, name, value in changed:
            setattr(holder, name, value)


def _is_noise(name: str) -> bool:
    return any(word in name for word in _NOISE)


def _holders(model: nn.Module) -> Iterator[Any]:
    """Yield each module, and each config that one of them reads, once."""
    seen: set[int] = set()
    for module in model.modules():
        yield module
        config = vars(module).get("config")
        if hasattr(config, "model_type") and id(config) not in seen:
            seen.add(id(config))
            yield config
