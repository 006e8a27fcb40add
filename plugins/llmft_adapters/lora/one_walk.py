"""Steps of several walks over large tensors, compiled into one walk where a GPU takes them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

log = logging.getLogger("llmft")

WORTH = 2**22
"""Numbers of a tensor from which on a walk takes longer than the start of a compiled step."""


def compiles(some: torch.Tensor) -> bool:
    """Return whether steps over a tensor are compiled: on a GPU, where it is large."""
    on_gpu = some.is_cuda and torch.version.cuda is not None and find_spec("triton") is not None
    return bool(on_gpu and some.numel() >= WORTH)


class OneWalk:
    """A function of tensors, compiled by torch.compile at its first call, for all shapes.

    Where that fails (no C compiler, say), it runs as it is written.
    """

    def __init__(self, step: Callable[..., torch.Tensor], backend: Any = "inductor") -> None:
        self.step, self.backend = step, backend
        self.made: Any = None

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Return step(*tensors)."""
        if self.made is None:
            self.made = torch.compile(self.step, dynamic=True, backend=self.backend)
        try:
            out: torch.Tensor = self.made(*tensors)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler and its tools raise
            log.debug("a step is not compiled: %s", error)
            self.made = self.step
            out = self.step(*tensors)
        return out


times = OneWalk(lambda some, scale: (some * scale).to(some.dtype))
"""A product in the first's dtype, computed in the wider one."""

_sums = OneWalk(lambda some, others: (some.float() * others.float()).sum(1))
_GROUPS = 64
"""Sums that are taken side by side: rows of one column alone would leave most of a GPU idle."""


def sum_over_rows(some_TO: torch.Tensor, others_TO: torch.Tensor) -> torch.Tensor:
    """Return the sum over rows of two tensors' product, in float32."""
    whole = len(some_TO) // _GROUPS * _GROUPS
    shape = (_GROUPS, -1, some_TO.shape[1])
    sums = _sums(some_TO[:whole].reshape(shape), others_TO[:whole].reshape(shape))
    rest = some_TO[whole:].float() * others_TO[whole:].float()
    return torch.cat([sums, rest]).sum(0)
