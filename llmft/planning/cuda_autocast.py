"""Autocast as a GPU has it, for tensors of a plan, which stand on the CPU.

On a GPU autocast computes a list of operations in float32 that it leaves in 16 bits on a CPU, such
as layer norms, powers and sums (ATen/autocast_mode.h). What they make, and keep for the backward
pass, takes twice the bytes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

_HALF = (torch.bfloat16, torch.float16)
WIDE = frozenset({
    "acos", "asin", "cdist", "cosh", "cosine_similarity", "dist", "erfinv", "exp", "expm1",
    "group_norm", "kl_div", "l1_loss", "layer_norm", "log", "log10", "log1p", "log2", "logsumexp",
    "mse_loss", "native_layer_norm", "nll_loss", "pow", "reciprocal", "renorm", "rms_norm", "rsqrt",
    "sinh", "smooth_l1_loss", "softplus", "tan",
})  # fmt: skip
"""What is computed in float32."""
SUMS = frozenset({"cumprod", "cumsum", "log_softmax", "prod", "softmax", "sum"})
"""What gives float32, unless a type is asked for."""
_SPELLED = {"__pow__": "pow", "__rpow__": "pow"}


class CudaAutocast(TorchFunctionMode):
    """While it is entered, autocast of the CPU widens what a GPU's does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        name = _SPELLED.get(name, name)
        if name not in WIDE and name not in SUMS:
            return func(*args, **kwargs)
        if not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        if name in WIDE:
            return func(*tree_map(_wide, args), **tree_map(_wide, kwargs))
        if args and _is_half(args[0]) and kwargs.get("dtype") is None:
            kwargs = {**kwargs, "dtype": torch.float32}
        return func(*args, **kwargs)


def _is_half(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in _HALF


def _wide(value: Any) -> Any:
    return value.float() if _is_half(value) else value
