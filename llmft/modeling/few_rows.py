"""Products of few rows in bfloat16 on a CPU, as when answers are drawn.

torch lays a weight out anew for each product of rows with it, which takes several times as long as
the product, where the rows are few. The same product with the weight in front needs no such copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

MOST = 64
"""Rows up to which it pays; a single one has a kernel of its own."""


def weights_in_front(model: Any) -> AbstractContextManager[Any]:
    """Return a block in which a model's products of few rows have the weight in front.

    For passes without gradients. Of a model that is elsewhere than on a CPU, or has no weights in
    bfloat16, nothing changes.
    """
    first = next(iter(model.parameters()), None)
    if first is None or first.device.type != "cpu":
        return nullcontext()
    half = any(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    return _WeightsInFront() if half else nullcontext()


class _WeightsInFront(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and not kwargs and _pays(*args[:2]):
            return _product(*args)
        return func(*args, **(kwargs or {}))


def _pays(x: torch.Tensor, W_OI: torch.Tensor) -> bool:
    if type(x) is not torch.Tensor or x.dtype != torch.bfloat16 or W_OI.dtype != x.dtype:
        return False
    return x.device.type == "cpu" and 1 < x.numel() // max(1, x.shape[-1]) <= MOST


def _product(
    x: torch.Tensor, W_OI: torch.Tensor, bias_O: torch.Tensor | None = None
) -> torch.Tensor:
    x_IT = x.reshape(-1, x.shape[-1]).t()
    if bias_O is None:
        out_OT = torch.mm(W_OI, x_IT)
    else:
        out_OT = torch.addmm(bias_O.unsqueeze(1), W_OI, x_IT)
    return out_OT.t().contiguous().view(*x.shape[:-1], -1)
