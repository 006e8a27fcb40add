"""Adafactor, as transformers has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmft.api import Optimizer, OptimizerConfig, TrainSettings, hookimpl

if TYPE_CHECKING:
    import torch


class Adafactor(Optimizer[OptimizerConfig]):
    """Adafactor (Shazeer and Stern 2018) of transformers, with the recipe's learning rate."""

    method = "adafactor"
    Config = OptimizerConfig

    def make(
        self, groups: Sequence[Mapping[str, Any]], train: TrainSettings
    ) -> torch.optim.Optimizer:
        from transformers.optimization import Adafactor

        made: torch.optim.Optimizer = Adafactor(
            [dict(group) for group in groups],
            scale_parameter=False,
            relative_step=False,
            lr=train.learning_rate,
            weight_decay=train.weight_decay,
        )
        return made


@hookimpl
def llmft_optimizers() -> list[type[Adafactor]]:
    return [Adafactor]
