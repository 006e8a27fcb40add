"""A cache of keys and values that has room ahead, so that a token more is written, not copied to.

transformers' own copies all keys and values of a layer for each token that is read, which grows
with the rows and with what they have read (`benchmarks/drawing.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

_LEAST = 64
"""Tokens for which there is room at first, where so many may still come."""


def give_room(cache: Any, more: int) -> None:
    """Let the plain layers of transformers' DynamicCache grow in place. more: tokens to come.

    Room is made for half as many tokens again as there are, and for no more than are to come.
    Layers of another kind, and other caches, stay as they are.
    """
    if type(cache).__name__ != "DynamicCache":
        return
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.is_initialized and layer.keys.dim() == 4:
            cache.layers[number] = GrowingLayer(layer, layer.keys.shape[2] + more)


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values: (B, H, T, D) views of tensors with room for further T.

    most: the tokens that it will hold at most, as far as is known.
    """

    def __init__(self, layer: Any, most: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        self.keys, self.values = layer.keys, layer.values
        self.most = most
        self._rooms: list[_Room] = [_Room(), _Room()]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all keys and values, those of the new tokens behind the others."""
        of_keys, of_values = self._rooms
        self.keys = of_keys.with_more(self.keys, key_states, self.most)
        self.values = of_values.with_more(self.values, value_states, self.most)
        return self.keys, self.values


class _Room:
    """A tensor of which a part, from its beginning, is in use: `given` is the part given last."""

    def __init__(self) -> None:
        self.whole: torch.Tensor | None = None
        self.given: torch.Tensor | None = None

    def with_more(self, held: torch.Tensor, new: torch.Tensor, most: int) -> torch.Tensor:
        """Return `held` and `new` as one tensor. held: it is copied where it is not what was given,
        as after rows were chosen from it, or where there is no room left."""
        length, end = held.shape[2], held.shape[2] + new.shape[2]
        if self.whole is None or held is not self.given or end > self.whole.shape[2]:
            room = max(end, min(most, length + max(_LEAST, length // 2)))
            self.whole = held.new_empty((*held.shape[:2], room, held.shape[3]))
            self.whole[:, :, :length] = held
        self.whole[:, :, length:end] = new
        self.given = self.whole[:, :, :end]
        return self.given
