"""Counts the bytes of every tensor that lives, by what it is for, and what stood at the peak."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llmft.planning.caching_allocator import Block, CachingAllocator

WEIGHTS, ADAPTER, EARLIER = "weights", "adapter", "earlier stages"
OTHERS = "other models"
TRAINED = "trained weights"
"""Of the base itself, and what is trained beside them, where an adapter declares `trains_base`."""
GRADIENTS, OPTIMIZER, CACHE = "gradients", "optimiser", "KV cache"
CALLBACKS = "plugins"
"""What callbacks hold of each trained parameter, such as its average over the steps."""
ACTIVATIONS, LOGITS, COPIES, MAPPED = "activations", "logits", "copies", "mapped file"
WORKSPACES, FRAGMENTS = "workspaces", "fragments"
"""Of a GPU's memory: what cuBLAS works in; what the allocator holds around tensors, for good."""
KINDS = (
    WEIGHTS, MAPPED, ADAPTER, TRAINED, EARLIER, OTHERS, OPTIMIZER, CALLBACKS, GRADIENTS,
    ACTIVATIONS, LOGITS, CACHE, COPIES, WORKSPACES, FRAGMENTS,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Peak:
    """The most memory that was held at once in a phase, and what for.

    tensors: the most bytes of tensors at once. reserved: all that the allocator had by then.
    """

    phase: str
    by_kind: dict[str, int] = field(default_factory=dict)
    tensors: int = field(default=0, compare=False)
    reserved: int = field(default=0, compare=False)

    @property
    def total(self) -> int:
        """All bytes at the peak."""
        return sum(self.by_kind.values())


class MemoryTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """While it is entered, sees every tensor that an operation makes, and when it is freed.

    allocator: holds a block for each tensor, as on a GPU; None: tensors take their bytes.
    vocabulary: a tensor whose last axis has this length counts as logits. flops: of the matrix
        products in each phase so far.
    """

    def __init__(self, allocator: CachingAllocator | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allocator = allocator
        self.vocabulary = 0
        self.kind = ACTIVATIONS
        self.live: Counter[str] = Counter()
        self.peaks: list[Peak] = []
        self.phase = ""
        self._storages: dict[int, tuple[Any, str, int, Block | None]] = {}
        self._peak: dict[str, int] = {}
        self._highest, self._most = (0, 0), 0
        self.flops: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.add(out)
        elif isinstance(out, tuple | list):
            for tensor in tree_leaves(out):
                self.add(tensor)
        if func.__name__.startswith("gemm_4bit") and (hidden := _hidden(args)):
            self.pass_by(ACTIVATIONS, hidden)
        self.flops[self.phase] += flops_of(func, args, kwargs or {}, out)
        return out

    def add(self, tensor: Any, kind: str | None = None, share: float = 1.0) -> None:
        """Count a tensor's storage, once, until it is freed; `kind` moves one that is known.

        share: how much of it is there, where processes divide it among them.
        """
        if not isinstance(tensor, torch.Tensor):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            reference, was, size, block = self._storages[key]
            if kind is not None and was != kind:
                self._storages[key] = (reference, kind, size, block)
                self.live[was] -= size
                self.live[kind] += size
            return
        size, kind = round(storage.nbytes() * share), kind or self._kind_of(tensor)
        freed = weakref.ref(storage, lambda _: self._freed(key))
        block = self.allocator.take(size) if self.allocator else None
        self._storages[key] = (freed, kind, size, block)
        self.live[kind] += size
        self.note()

    def hold(self, kind: str, sizes: Iterable[int]) -> None:
        """Count tensors of so many bytes that nobody makes, and that stay to the end."""
        for size in sizes:
            if self.allocator:
                self.allocator.take(size)
            self.live[kind] += size

    def pass_by(self, kind: str, size: int) -> None:
        """Count a tensor of so many bytes that an operation makes and frees within itself."""
        if self.allocator is None:
            self.note(kind, size)
            return
        block = self.allocator.take(size)
        self.live[kind] += size
        self.note()
        self.live[kind] -= size
        self.allocator.give_back(block)

    @contextmanager
    def making(self, kind: str) -> Iterator[None]:
        """Count what is made in this block as of one kind."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    def begin(self, phase: str) -> None:
        """Close the phase before, keeping its peak, and begin the next."""
        self.close()
        self.phase, self._highest, self._most, self._peak = phase, (0, 0), 0, {}
        self.note()

    def close(self) -> None:
        """Keep the peak of the phase that runs, if one does."""
        if self.phase:
            by_kind = {kind: self._peak[kind] for kind in KINDS if self._peak.get(kind)}
            reserved = self.allocator.reserved if self.allocator else 0
            self.peaks.append(Peak(self.phase, by_kind, self._most, reserved))
        self.phase = ""

    def note(self, kind: str = ACTIVATIONS, more: int = 0) -> None:
        """Hold what lives now, and some bytes more for a moment, against the peak."""
        live = self.live.total() + more
        self._most = max(self._most, live)
        held = self.allocator.held + more if self.allocator else live
        # Of moments at which the allocator holds as much, the one with the most tensors.
        if (held, live) > self._highest:
            self._highest = held, live
            self._peak = dict(self.live)
            self._peak[kind] = self._peak.get(kind, 0) + more
            self._peak[FRAGMENTS] = held - live

    def claim(self, kind: str, size: int) -> None:
        """Say that so many of the bytes at the peak, taken for activations, were of this kind."""
        size = min(size, self._peak.get(ACTIVATIONS, 0))
        self._peak[ACTIVATIONS] = self._peak.get(ACTIVATIONS, 0) - size
        self._peak[kind] = self._peak.get(kind, 0) + size

    def _kind_of(self, tensor: Any) -> str:
        if self.kind != ACTIVATIONS:
            return self.kind
        wide = tensor.ndim > 1 and tensor.shape[-1] == self.vocabulary
        return LOGITS if wide and tensor.is_floating_point() else ACTIVATIONS

    def _freed(self, key: int) -> None:
        _, kind, size, block = self._storages.pop(key)
        self.live[kind] -= size
        if self.allocator:
            self.allocator.give_back(block)


def flops_of(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Return the FLOPs of an operation's matrix products, as torch's own counter has them.

    Attention on a CPU, which that knows of a GPU only, and bitsandbytes' products are counted too.
    """
    counter: Any = flop_counter  # untyped
    name = func.__name__
    if name.startswith("gemm_4bit"):
        rows, shape = args[0], args[2]
        return 2 * int(rows.numel()) * int(shape[0])
    if name.startswith("_scaled_dot_product_flash_attention_for_cpu"):
        shapes = [tensor.shape for tensor in args[:4] if isinstance(tensor, torch.Tensor)]
        if "backward" in name:
            return int(counter.sdpa_backward_flop_count(*shapes[:4]))
        return int(counter.sdpa_flop_count(*shapes[:3]))
    formula = counter.flop_registry.get(func._overloadpacket)
    return int(formula(*args, **kwargs, out_val=out)) if formula is not None else 0


def _hidden(args: Any) -> int:
    """Return the bytes of the weight that bitsandbytes unpacks where it has no 4-bit kernel."""
    rows, shape = args[0], args[2]
    return int(rows.element_size() * shape[0] * shape[1])
