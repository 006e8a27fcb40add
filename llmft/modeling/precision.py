"""What is trained is float32, whatever type the base's weights have.

A copy of a base weight (`modules_to_save`, a bias, a norm) in bfloat16 does not move: an update is
smaller than the distance of two neighbouring numbers. So each is a float32 parameter, from which
the forward pass takes a copy in the base's type: training computes what the saved weights will.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_HALF = (torch.bfloat16, torch.float16)
STORED = "llmft_stored_dtypes"
"""The attribute of a model that holds the base's type of each parameter trained in float32."""


def train_in_float32(model: nn.Module) -> None:
    """Make every trained parameter float32; its module computes in the type that it had."""
    stored: dict[str, torch.dtype] = {}
    changed: dict[int, torch.dtype] = {}
    for prefix, module in model.named_modules():
        names = []
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.requires_grad:
                continue
            if parameter.dtype in _HALF:
                changed[id(parameter)] = parameter.dtype
                parameter.data = parameter.data.float()
            if id(parameter) in changed:  # one may stand in two modules
                names.append(name)
                stored[f"{prefix}.{name}".lstrip(".")] = changed[id(parameter)]
        if names:
            module.forward = _Cast(module, {n: changed[id(module._parameters[n])] for n in names})
    setattr(model, STORED, {**getattr(model, STORED, {}), **stored})


def without_masters(model: nn.Module) -> str:
    """Return what a person should know of weights trained in 16 bits; '' where there are none."""
    narrow = [p for p in model.parameters() if p.requires_grad and p.dtype in _HALF]
    if not narrow:
        return ""
    count, kind = sum(p.numel() for p in narrow), str(narrow[0].dtype).removeprefix("torch.")
    return (
        f"{count:,} weights are trained in {kind} themselves, without float32 masters: an update"
        " smaller than the distance to the next number is lost"
    )


class _Cast:
    """Stands in for a module's `forward`: its trained parameters are cast for the while."""

    def __init__(self, module: nn.Module, dtypes: dict[str, torch.dtype]) -> None:
        self.module, self.dtypes = module, dtypes
        self.forward: Callable[..., Any] = module.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        own: dict[str, Any] = self.module._parameters
        kept = {name: own[name] for name in self.dtypes}
        try:
            for name, dtype in self.dtypes.items():
                own[name] = kept[name].to(dtype)
            return self.forward(*args, **kwargs)
        finally:
            own.update(kept)


@contextmanager
def as_stored(model: nn.Module) -> Iterator[None]:
    """Let the parameters trained in float32 have the base's type for a while, to be saved."""
    named = dict(model.named_parameters(remove_duplicate=False))
    dtypes = getattr(model, STORED, {})
    trained = {id(named[name]): (named[name], dtype) for name, dtype in dtypes.items()}
    kept = [(parameter, parameter.data) for parameter, _ in trained.values()]
    for parameter, dtype in trained.values():
        parameter.data = parameter.data.to(dtype)
    try:
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data
