"""C3A: block-circular convolutions as the update (Chen et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from llmft.api import Field, Refusal, hookimpl
from llmft_adapters.layer_choice import LayerChoice
from llmft_adapters.peft_methods import PeftMethod, divides


class C3A(PeftMethod["C3A.Config"]):
    """W x becomes W x + C x, with C made of circulant blocks whose first rows are trained."""

    method = "c3a"
    config_class = "C3AConfig"
    small = {"block_size": 2}
    not_in_the_result = ("init_weights",)

    class Config(LayerChoice):
        """PEFT's C3AConfig, by its own names."""

        block_size: int = Field(
            256, ge=1, le=65_536, description="the blocks' width; it divides the layers' widths"
        )
        init_weights: bool | Literal["xavier_uniform", "kaiming_uniform", "gaussian"] = Field(
            "xavier_uniform", description="how the first rows start; true: as 0"
        )

    def starts_as_base(self) -> bool:
        return self.config.init_weights is True

    def layer_misfits(self, sizes: Mapping[str, tuple[int, int]]) -> Iterable[Refusal]:
        yield from divides("block_size", self.config.block_size, sizes)


@hookimpl
def llmft_adapters() -> list[type[C3A]]:
    return [C3A]
