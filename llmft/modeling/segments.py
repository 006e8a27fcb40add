"""The segments of a batch laid end to end: found once, for all layers that attend within them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of T, and the stretch that stands before it."""

    start: int
    end: int
    prefix_start: int = 0
    prefix: int = 0

    @property
    def own(self) -> int:
        return self.end - self.start

    @property
    def length(self) -> int:
        return self.prefix + self.own

    @property
    def places(self) -> list[int]:
        """Where along T the segment's tokens are, its prefix first."""
        before = range(self.prefix_start, self.prefix_start + self.prefix)
        return [*before, *range(self.start, self.end)]


class Segments:
    """All segments of a batch, and index tensors made of them, each once for a device."""

    def __init__(self, all: list[Segment]) -> None:
        self.all = all
        self._made: dict[Any, Any] = {}

    @classmethod
    def of(cls, bounds: torch.Tensor, shared: torch.Tensor | None) -> Segments:
        """Return the segments of boundaries, which keep them: another layer gets the same ones."""
        known: Segments | None = getattr(bounds, "_llmft_segments", None)
        if known is not None:
            return known
        ends: list[int] = bounds.tolist()
        before = shared.tolist() if shared is not None else [(0, 0)] * (len(ends) - 1)
        stretches = zip(ends, ends[1:], before, strict=False)
        found = cls([Segment(start, end, *prefix) for start, end, prefix in stretches])
        bounds._llmft_segments = found  # type: ignore[attr-defined]
        return found

    @cached_property
    def longest(self) -> int:
        return max(segment.length for segment in self.all)

    @cached_property
    def longest_own(self) -> int:
        return max(segment.own for segment in self.all)

    @cached_property
    def work(self) -> int:
        """Pairs of a query and a key, causality aside."""
        return sum(segment.own * segment.length for segment in self.all)

    @cached_property
    def alike(self) -> bool:
        """Whether all are of one length, and nothing stands before any."""
        return all(s.own == self.all[0].own and not s.prefix for s in self.all)

    def padding(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what padded rows are made of, and where their own tokens then are.

        (B x longest,) places along T; (T,) places along those, of the segments' own tokens.
        """
        if ("padding", device) not in self._made:
            source: list[int] = []
            kept: list[int] = []
            for number, segment in enumerate(self.all):
                source += segment.places + [0] * (self.longest - segment.length)
                first = number * self.longest
                kept += range(first + segment.prefix, first + segment.length)
            self._made["padding", device] = _there(source, device), _there(kept, device)
        found: tuple[torch.Tensor, torch.Tensor] = self._made["padding", device]
        return found

    def boundaries(self, device: torch.device, learnt: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the boundaries of queries and of keys, int32, as variable-length kernels want.

        learnt: keys that stand before those of every segment.
        """
        if ("boundaries", device, learnt) not in self._made:
            queries, keys = [0], [0]
            for segment in self.all:
                queries.append(queries[-1] + segment.own)
                keys.append(keys[-1] + learnt + segment.length)
            made = _there(queries, device, torch.int32), _there(keys, device, torch.int32)
            self._made["boundaries", device, learnt] = made
        found: tuple[torch.Tensor, torch.Tensor] = self._made["boundaries", device, learnt]
        return found

    def keys(self, device: torch.device, learnt: int) -> torch.Tensor | None:
        """Return the places of each segment's keys along learnt + T; None: they lie there so."""
        if not learnt and not any(segment.prefix for segment in self.all):
            return None
        if ("keys", device, learnt) not in self._made:
            places = [
                p for s in self.all for p in (*range(learnt), *(learnt + q for q in s.places))
            ]
            self._made["keys", device, learnt] = _there(places, device)
        found: torch.Tensor = self._made["keys", device, learnt]
        return found


def _there(
    numbers: list[int], device: torch.device, dtype: torch.dtype = torch.long
) -> torch.Tensor:
    return to_device([torch.tensor(numbers, dtype=dtype)], device)[0]


def tensor_like(numbers: Sequence[Any] | torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return numbers, lists of them or a CPU's tensor on another one's device, and of its dtype.

    Like `to_device`, and unlike `Tensor.new_tensor`, the host does not wait for a GPU.
    """
    return moved(torch.as_tensor(numbers, dtype=like.dtype), like.device)


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a CPU's tensor on a device; to a GPU from pinned memory, which is not waited for."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_device(tensors: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Return whole numbers on a device; to a GPU in one copy, which is not waited for.

    A copy of memory that is not pinned would be waited for.
    """
    if device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    pinned = torch.cat([tensor.flatten().long() for tensor in tensors]).pin_memory()
    there = pinned.to(device, non_blocking=True)
    parts = torch.split(there, [tensor.numel() for tensor in tensors])
    pairs = zip(parts, tensors, strict=True)
    return [part.view(tensor.shape).to(tensor.dtype) for part, tensor in pairs]
