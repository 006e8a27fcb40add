"""The optimisers of torchao: AdamW with states of 8 or 4 bits, also without CUDA."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from llmft.api import Optimizer, OptimizerConfig, TrainSettings, hookimpl
from llmft_optimizers.making import Groups, copied, library, of_adam, usual

if TYPE_CHECKING:
    import torch

SMALL = 4096
"""torchao keeps states of smaller tensors as they are, and of those that its blocks do not fill."""


class OfTorchao(Optimizer[OptimizerConfig]):
    """An AdamW of torchao. bits: of a number of its states. block: so many have a scale."""

    Config = OptimizerConfig
    package = "torchao"
    of_class: ClassVar[str]
    bits: ClassVar[int]
    block: ClassVar[int]

    def make(self, groups: Groups, train: TrainSettings) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = _with_plain_rates(self.method, self.of_class)(
            copied(groups), **of_adam(train), **usual(train)
        )
        return made

    def state_bytes(self, parameter: torch.Tensor) -> int:
        count = parameter.numel()
        if count < SMALL or count % self.block:
            return 2 * 4 * count
        scales, table = 4 * count // self.block, 4 * 2**self.bits
        size: int = count * self.bits // 8 + scales + table
        return 2 * size


class AdamwTorch8bit(OfTorchao):
    """AdamW with states of 8 bits (Dettmers et al. 2022), compiled by torch."""

    method, of_class, bits, block = "adamw_torch_8bit", "AdamW8bit", 8, 256


class AdamwTorch4bit(OfTorchao):
    """AdamW with states of 4 bits (Li et al. 2023), compiled by torch."""

    method, of_class, bits, block = "adamw_torch_4bit", "AdamW4bit", 4, 128


@cache
def _with_plain_rates(method: str, of_class: str) -> Any:
    """Return torchao's class, with groups whose rates are numbers, as a schedule sets them."""
    import torch

    base: Any = getattr(library(method, "torchao.optim"), of_class)

    class PlainRates(base):  # type: ignore[misc]
        """It wants tensors, as its step is compiled once for all rates."""

        def __init__(self, groups: Any, **settings: Any) -> None:
            plain = [group.get("lr", settings["lr"]) for group in groups]
            super().__init__(groups, **settings)
            self._rates = [group["lr"] for group in self.param_groups]
            for group, rate in zip(self.param_groups, plain, strict=True):
                group["lr"] = rate

        def step(self, closure: Any = None) -> Any:
            plain = [group["lr"] for group in self.param_groups]
            for group, rate in zip(self.param_groups, self._rates, strict=True):
                group["lr"] = rate.fill_(group["lr"])
            try:
                return super().step(closure)
            finally:
                for group, rate in zip(self.param_groups, plain, strict=True):
                    group["lr"] = rate

        def init_state(self, group: Any, parameter: Any, number: int, place: int) -> None:
            """Set up the state of a parameter, for a checkpoint's to be put into it."""
            self.state[parameter].update(
                step=torch.tensor(0.0),
                exp_avg=self._new_buffer(parameter, True),
                exp_avg_sq=self._new_buffer(parameter, False),
            )

    return PlainRates


@hookimpl
def llmft_optimizers() -> list[type[Optimizer[Any]]]:
    return [AdamwTorch8bit, AdamwTorch4bit]
