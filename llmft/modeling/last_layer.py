"""The last layer's feed-forward network, computed where its output is read and nowhere else.

What it adds to a token's state, no other token reads. Of a row only label positions are read, of a
reward model's row one: the rest is left out, forward and backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from llmft.modeling.levers import levers_of

MOST = 0.75
"""The share of positions from which on leaving the rest out saves too little."""


@contextmanager
def narrowed(model: Any, keep_N: torch.Tensor, width: int) -> Iterator[None]:
    """Let the last layer's network answer 0 at every position that is not in `keep_N`.

    keep_N: positions without repeats, counted from the end (-1 is the last), on the model's device.
    width: positions of the rows. Does nothing where layers are computed again in the backward pass,
    when this has ended; where an adapter puts tokens of its own among the rows; and where a model
    keeps no such network by itself.
    """
    mlp = _last_network(model) if levers_of(model).last_layer else None
    if mlp is None:
        yield
        return
    before, whole = vars(mlp).get("forward"), mlp.forward

    def only_there(hidden_BTD: torch.Tensor, *more: Any, **named: Any) -> Any:
        laid_otherwise = hidden_BTD.dim() != 3 or hidden_BTD.shape[1] != width
        if more or named or laid_otherwise or len(keep_N) > MOST * width:
            return whole(hidden_BTD, *more, **named)
        at_N = keep_N + width
        out_BND = whole(hidden_BTD.index_select(1, at_N))
        if not isinstance(out_BND, torch.Tensor):  # a router's choice comes with it
            return whole(hidden_BTD)
        return out_BND.new_zeros(hidden_BTD.shape).index_copy(1, at_N, out_BND)

    mlp.forward = only_there
    try:
        yield
    finally:
        if before is None:
            del mlp.forward
        else:
            mlp.forward = before


def _last_network(model: Any) -> Any:
    """Return the feed-forward network of the last of the model's layers, or None."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    count = getattr(base.config, "num_hidden_layers", None)
    stacks = []
    for module in base.modules():
        if getattr(module, "gradient_checkpointing", False):
            return None
        if isinstance(module, nn.ModuleList) and len(module) == count:
            stacks.append(module)
    network = getattr(stacks[0][-1], "mlp", None) if len(stacks) == 1 else None
    return network if isinstance(network, nn.Module) else None
