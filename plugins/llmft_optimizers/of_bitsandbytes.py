"""The optimisers of bitsandbytes: states of 8 bits, and states in memory that is paged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from llmft.api import Optimizer, OptimizerConfig, TrainSettings, hookimpl
from llmft_optimizers.making import Groups, copied, library, of_adam, usual

if TYPE_CHECKING:
    import torch

BLOCK = 256
"""bitsandbytes keeps a scale for so many numbers of an 8-bit state,"""
SMALL = 4096
"""and states of smaller tensors in 32 bits."""


class OfBitsandbytes(Optimizer[OptimizerConfig]):
    """An optimiser of bitsandbytes."""

    Config = OptimizerConfig
    package = "bitsandbytes"
    supports_cpu = False
    of_class: ClassVar[str]
    states: ClassVar[int] = 2
    eight_bits: ClassVar[bool] = False

    def make(self, groups: Groups, train: TrainSettings) -> torch.optim.Optimizer:
        cls: type[torch.optim.Optimizer] = getattr(
            library(self.method, "bitsandbytes").optim, self.of_class
        )
        options = of_adam(train)
        if self.states == 1:
            del options["eps"]
        return cls(copied(groups), **options, **usual(train))

    def state_bytes(self, parameter: torch.Tensor) -> int:
        count = parameter.numel()
        narrow = self.eight_bits and count >= SMALL
        return self.states * (count + 4 * -(-count // BLOCK) if narrow else 4 * count)


class Adamw8bit(OfBitsandbytes):
    """AdamW with states of 8 bits (Dettmers et al. 2022)."""

    method, of_class, eight_bits = "adamw_8bit", "AdamW8bit", True


class PagedAdamw8bit(OfBitsandbytes):
    """AdamW with states of 8 bits that move to the CPU's memory where the GPU's is out."""

    method, of_class, eight_bits = "paged_adamw_8bit", "PagedAdamW8bit", True


class PagedAdamw32bit(OfBitsandbytes):
    """AdamW with states that move to the CPU's memory where the GPU's is out."""

    method, of_class = "paged_adamw_32bit", "PagedAdamW32bit"


class Lion32bit(OfBitsandbytes):
    """Lion (Chen et al. 2023): the sign of a momentum."""

    method, of_class, states = "lion_32bit", "Lion32bit", 1


class Lion8bit(OfBitsandbytes):
    """Lion with a state of 8 bits."""

    method, of_class, states, eight_bits = "lion_8bit", "Lion8bit", 1, True


class PagedLion32bit(OfBitsandbytes):
    """Lion with a state that moves to the CPU's memory where the GPU's is out."""

    method, of_class, states = "paged_lion_32bit", "PagedLion32bit", 1


class PagedLion8bit(OfBitsandbytes):
    """Lion with a state of 8 bits that moves to the CPU's memory where the GPU's is out."""

    method, of_class, states, eight_bits = "paged_lion_8bit", "PagedLion8bit", 1, True


@hookimpl
def llmft_optimizers() -> list[type[Optimizer[Any]]]:
    return [
        Adamw8bit, PagedAdamw8bit, PagedAdamw32bit, Lion32bit, Lion8bit, PagedLion32bit,
        PagedLion8bit,
    ]  # fmt: skip
