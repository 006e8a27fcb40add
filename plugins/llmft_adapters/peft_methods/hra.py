"""HRA: a chain of trained Householder reflections before a layer (Yuan et al. 2024)."""

from __future__ import annotations

from typing import Any

from llmft.api import Field, hookimpl
from llmft_adapters.layer_choice import LayerChoice
from llmft_adapters.peft_methods import PeftMethod


class Hra(PeftMethod["Hra.Config"]):
    """W x becomes W (I - 2 u1 u1') ... (I - 2 ur ur') x."""

    method = "hra"
    config_class = "HRAConfig"
    small = {"r": 4}

    class Config(LayerChoice):
        """PEFT's HRAConfig, by its own names."""

        r: int = Field(
            8, ge=2, le=65_536, multiple_of=2, description="the reflections of each layer"
        )
        apply_GS: bool = Field(
            False,
            description="make them orthogonal to each other first; they then start at random: in"
            " equal pairs, which cancel out, they cannot be made orthogonal",
        )

    def starts_as_base(self) -> bool:
        return not self.config.apply_GS

    def peft_config(self, model: Any) -> Any:
        config = super().peft_config(model)
        config.init_weights = not self.config.apply_GS  # else PEFT divides by 0
        return config


@hookimpl
def llmft_adapters() -> list[type[Hra]]:
    return [Hra]
