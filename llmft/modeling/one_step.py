"""Norms and rotary positions as one step of the graph each, where a CPU computes them.

As transformers writes them, they are some twenty walks over a layer's states, forward and backward,
and as many tensors kept. They are taken over by what their code says and not by an architecture's
name: only functions of the very same bytecode as Llama's, so that the maths is known. What comes
out has the bits of transformers' own; gradients are summed in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any

import torch
from torch.autograd import Function

_ROTATION = "apply_rotary_pos_emb"


def take_over(model: Any) -> None:
    """Give a model's norms and rotations the forward pass of this module, where it is the same.

    Parameters stay as they are, and copies of the model have the same. Off a CPU, in other types
    than float32 and bfloat16, and where a norm is trained, it is transformers' own.
    """
    from transformers.models.llama import modeling_llama as llama

    for module in model.modules():
        forward = type(module).forward
        if _same(forward, llama.LlamaRMSNorm.forward):
            module.forward = MethodType(_norm, module)
        elif _rotates_as(forward, llama):
            named = {**forward.__globals__, _ROTATION: _rotated_by(forward.__globals__[_ROTATION])}
            module.forward = MethodType(_with_globals(forward, named), module)


def _same(one: Any, other: Any) -> bool:
    """Return whether two functions have the same code, but for texts: their docstrings."""
    if not (isinstance(one, FunctionType) and isinstance(other, FunctionType)):
        return False
    return _code(one) == _code(other)


def _code(function: FunctionType) -> tuple[Any, ...]:
    code = function.__code__
    numbers = [constant for constant in code.co_consts if not isinstance(constant, str)]
    return code.co_code, code.co_names, code.co_varnames, numbers, function.__defaults__


def _rotates_as(forward: Any, llama: Any) -> bool:
    if not isinstance(forward, FunctionType) or _ROTATION not in forward.__code__.co_names:
        return False
    rotation: Any = forward.__globals__.get(_ROTATION)
    if not _same(rotation, getattr(llama, _ROTATION)):
        return False
    return _same(rotation.__globals__["rotate_half"], llama.rotate_half)


def _with_globals(function: Any, named: dict[str, Any]) -> FunctionType:
    made = FunctionType(
        function.__code__, named, function.__name__, function.__defaults__, function.__closure__
    )
    made.__kwdefaults__ = function.__kwdefaults__
    return made


# --- norms


def _norm(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    weight = self.weight
    few = hidden_states.numel() <= _NEAR and not torch.is_grad_enabled()  # a token of each row, say
    if few or not _takes(hidden_states, weight) or weight.requires_grad:
        theirs: torch.Tensor = type(self).forward(self, hidden_states)
        return theirs
    apply: Any = _RmsNorm.apply
    out: torch.Tensor = apply(hidden_states, weight, self.variance_epsilon)
    return out


def _takes(*tensors: torch.Tensor) -> bool:
    dtype = tensors[0].dtype
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    return all(tensor.device.type == "cpu" and tensor.dtype == dtype for tensor in tensors)


class _RmsNorm(Function):
    """Zhang and Sennrich 2019, eq. 4: y = w x s, with s = 1 / sqrt(mean(x^2) + eps), in float32."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
        x_TD = x.reshape(-1, x.shape[-1])
        out_TD, scale_T1 = torch.empty_like(x_TD), x_TD.new_empty(len(x_TD), 1, dtype=_WIDE)
        for some, out, scale in _in_a_cache(x_TD, out_TD, scale_T1):
            wide = some.to(_WIDE)
            torch.mean(wide.square(), 1, keepdim=True, out=scale).add_(eps).rsqrt_()
            torch.mul(wide, scale, out=out).mul_(weight_D)
        ctx.save_for_backward(x_TD, weight_D, scale_T1)
        return out_TD.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TD, weight_D, scale_T1 = ctx.saved_tensors
        grad_TD, x_grad_TD = grads[0].reshape(x_TD.shape), torch.empty_like(x_TD)
        for some, scale, grad, into in _in_a_cache(x_TD, scale_T1, grad_TD, x_grad_TD):
            wide, weighed = some.to(_WIDE), grad.to(_WIDE) * weight_D
            # ds/dx = -s^3 x / D
            along = (weighed * wide).sum(1, keepdim=True).mul_(scale**3).div_(-some.shape[1])
            torch.addcmul(weighed.mul_(scale), wide, along, out=into)
        return x_grad_TD.view(grads[0].shape), None, None


_WIDE = torch.float32
_NEAR = 2**16
"""Numbers of a piece of rows that a core's cache holds through several walks."""


def _in_a_cache(x_TD: torch.Tensor, *more: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield the same rows of each tensor, some for each thread at a time."""
    rows = max(1, torch.get_num_threads() * _NEAR // x_TD.shape[1])
    yield from zip(*(torch.split(tensor, rows) for tensor in (x_TD, *more)), strict=True)


# --- rotary positions


def _rotated_by(theirs: Callable[..., Any]) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """Return what stands in for a model's rotation; `theirs` is called where it does not."""

    def rotated(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor,
        unsqueeze_dim: int = 1,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        if not _takes(q, k, cos, sin):
            of_theirs: tuple[torch.Tensor, torch.Tensor] = theirs(q, k, cos, sin, unsqueeze_dim)
            return of_theirs
        apply: Any = _Rotation.apply
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return apply(q, cos, sin), apply(k, cos, sin)

    return rotated


class _Rotation(Function):
    """Su et al. 2021, eq. 34, with pairs half a head apart: (a, b) becomes (ac - bs, bc + as)."""

    @staticmethod
    def forward(
        ctx: Any, x_BHTD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        first, second = x_BHTD.chunk(2, -1)
        sin_first, sin_second = sin.chunk(2, -1)
        out_BHTD = x_BHTD * cos
        out_first, out_second = out_BHTD.chunk(2, -1)
        out_first -= second * sin_first  # addcmul_ would round once, and not as transformers does
        out_second += first * sin_second
        return out_BHTD

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        first, second = grads[0].chunk(2, -1)
        sin_first, sin_second = sin.chunk(2, -1)
        x_grad = grads[0] * cos
        into_first, into_second = x_grad.chunk(2, -1)
        into_first.addcmul_(second, sin_second)
        into_second.addcmul_(first, sin_first, value=-1)
        return x_grad, None, None
