"""Adafactor, as transformers has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmft.api import Optimizer, OptimizerConfig, TrainSettings, hookimpl
from llmft_optimizers.making import Groups, copied, usual

if TYPE_CHECKING:
    import torch


class Adafactor(Optimizer[OptimizerConfig]):
    """Adafactor (Shazeer and Stern 2018) of transformers, with the recipe's learning rate."""

    method = "adafactor"
    Config = OptimizerConfig

    def make(self, groups: Groups, train: TrainSettings) -> torch.optim.Optimizer:
        from transformers.optimization import Adafactor

        made: torch.optim.Optimizer = Adafactor(
            copied(groups), scale_parameter=False, relative_step=False, **usual(train)
        )
        return made


@hookimpl
def llmft_optimizers() -> list[type[Adafactor]]:
    return [Adafactor]
