"""How many processes train together in a plan, and what each of them has of the whole.

One place for it: a process has a GPU of its own with the whole base on it, or with its share of the
layers, takes every so manieth forward pass of a step, and holds a flat copy of all gradients while
those are summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from llmft.api.errors import RecipeError

T = TypeVar("T")

NCCL_BUFFERS = 512 * 2**20
"""Bytes of a GPU that NCCL takes for talking to the others. Assumed: nothing was measured.

Its buffers are 4 MiB (NCCL_BUFFSIZE) for each channel and neighbour, beside those of its two other
protocols; it has up to 32 channels.
"""


@dataclass(frozen=True, slots=True)
class Processes:
    """So many processes, each with a GPU of its own."""

    count: int = 1

    @property
    def several(self) -> bool:
        """Whether there is anything to share."""
        return self.count > 1

    @property
    def for_nccl(self) -> int:
        """Bytes of each GPU that are taken before a tensor is made, beside its context."""
        return NCCL_BUFFERS if self.several else 0

    def shares(self, passes: Sequence[T]) -> list[Sequence[T]]:
        """Return the forward passes of a step that each process takes, as the loop deals them."""
        return [passes[rank :: self.count] for rank in range(self.count)]

    def share(self, parts: float) -> float:
        """Return how many of so many parts one process computes, where all are alike."""
        return parts / self.count

    def gathered(self, size: float) -> float:
        """Return the bytes that each process receives to gather `size` bytes from all."""
        return size * (self.count - 1) / self.count

    def sent(self, size: float) -> float:
        """Return the bytes that each process sends for the sum of so many, round a ring.

        All but its own part twice: once to be summed, once as the sum (Patarasuk and Yuan 2009).
        """
        return 2 * size * (self.count - 1) / self.count


ALONE = Processes()


def named_processes(gpus: int, gpu: str | None) -> Processes:
    """Return the processes of so many GPUs, one for each.

    gpu: the one that is named; None: those of this machine.
    Raises RecipeError (E090) where this machine has not as many.
    """
    import torch

    there = torch.cuda.device_count()
    if gpu is None and gpus > max(there, 1):
        has = f"{there} GPU{'s' * (there != 1)}" if there else "no GPU"
        raise RecipeError(
            "E090",
            f"--gpus {gpus} asks for more GPUs than this machine has: {has}",
            fix=f"name the cards that the run will have: --gpu H100 --gpus {gpus}",
        )
    return Processes(gpus)
