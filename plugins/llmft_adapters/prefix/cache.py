"""Keys and values that stand before the text's, given to the layers as a cache that never grows."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer


class _PrefixLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's prefix. `update` keeps nothing, so a layer may be computed again backwards."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            torch.cat([self.keys.to(key_states), key_states], dim=-2),
            torch.cat([self.values.to(value_states), value_states], dim=-2),
        )


class PrefixCache(Cache):  # type: ignore[misc]
    """A cache of a prefix only: each layer's (keys, values), stacked, (2, B, heads, P, D)."""

    def __init__(self, pairs: Sequence[torch.Tensor]) -> None:
        super().__init__(layers=[_PrefixLayer(keys, values) for keys, values in pairs])


@contextmanager
def kept_under_checkpointing(base: Any, cache: PrefixCache) -> Iterator[None]:
    """Let checkpointed layers have the cache, which is right for one that is only read.

    transformers takes caches away from them, in the model (GPT-2's) or in the layer.
    """
    hooks, layers = [], []
    found = [each for each in base.modules() if isinstance(each, GradientCheckpointingLayer)]
    # A model takes it from all layers, though it checkpoints some of them only.
    for layer in found if any(each.gradient_checkpointing for each in found) else ():
        parameters = list(inspect.signature(layer.forward).parameters)
        name = next((n for n in ("past_key_values", "layer_past") if n in parameters), None)
        if name is not None and layer.training:
            give = _giving(cache, name, parameters.index(name))
            hooks.append(layer.register_forward_pre_hook(give, with_kwargs=True))
            layer._can_checkpoint_with_cache = True
            layers.append(layer)
    try:
        yield
    finally:
        for hook, layer in zip(hooks, layers, strict=True):
            hook.remove()
            del layer._can_checkpoint_with_cache


def _giving(cache: PrefixCache, name: str, at: int) -> Any:
    def give(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) > at:
            return (*args[:at], cache, *args[at + 1 :]), kwargs
        return args, {**kwargs, name: cache}

    return give
