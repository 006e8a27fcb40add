"""Products of few rows in bfloat16 on a CPU, as when answers are drawn.

torch lays a weight out anew for each product of rows with it, which costs most where the rows are
few. The same product with the weight in front needs no such copy (`benchmarks/drawing.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

MOST = 64
"""Rows up to which it pays; a single one has a kernel of its own."""


def linear(x: torch.Tensor, W_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    """Return `F.linear` of these, the weight in front where that is faster."""
    if not _pays(x, W_OI):
        return F.linear(x, W_OI, bias_O)
    x_IT = x.reshape(-1, x.shape[-1]).t()
    if bias_O is None:
        out_OT = torch.mm(W_OI, x_IT)
    else:
        out_OT = torch.addmm(bias_O.unsqueeze(1), W_OI, x_IT)
    return out_OT.t().contiguous().view(*x.shape[:-1], -1)


def _pays(x: torch.Tensor, W_OI: torch.Tensor) -> bool:
    if x.dtype != torch.bfloat16 or W_OI.dtype != x.dtype or type(x) is not torch.Tensor:
        return False
    return x.device.type == "cpu" and 1 < x.numel() // max(1, x.shape[-1]) <= MOST


@contextmanager
def weights_in_front(model: Any) -> Iterator[None]:
    """Let a model's plain linear layers multiply by `linear` while the block runs.

    Those beneath an adapter are left alone: it multiplies by itself.
    """
    layers = [
        layer
        for name, layer in model.named_modules()
        if type(layer) is torch.nn.Linear
        and layer.weight.dtype == torch.bfloat16
        and layer.weight.device.type == "cpu"
        and "forward" not in vars(layer)
        and not name.endswith("base_layer")
    ]
    for layer in layers:
        vars(layer)["forward"] = partial(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def _forward(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return linear(x, layer.weight, layer.bias)
