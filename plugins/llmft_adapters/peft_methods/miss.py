"""MiSS: one small matrix, repeated over shards of a weight (Kang and Yin 2024)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from llmft.api import Field, Refusal, hookimpl
from llmft_adapters.layer_choice import LayerChoice
from llmft_adapters.peft_methods import PeftMethod, divides


class Miss(PeftMethod["Miss.Config"]):
    """W x becomes W x + D x, with D a trained matrix of r rows, tiled over W's inputs."""

    method = "miss"
    config_class = "MissConfig"
    small = {"r": 2, "mini_r": 1}
    not_in_the_result = ("miss_dropout",)

    class Config(LayerChoice):
        """PEFT's MissConfig, by its own names."""

        r: int = Field(64, ge=1, le=65_536, description="the rows of the trained matrix")
        miss_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the update's input")
        init_weights: bool | Literal["bat", "mini"] = Field(
            True, description="bat: Bat, which reads W too; mini: fewer parameters, by mini_r"
        )
        mini_r: int = Field(
            1, ge=1, le=65_536, description="with mini: divides the layers' outputs"
        )

    def layer_misfits(self, sizes: Mapping[str, tuple[int, int]]) -> Iterable[Refusal]:
        config = self.config
        if config.init_weights == "bat":
            yield from divides("r", config.r, sizes)
        elif config.init_weights == "mini":
            outputs = {name: (width, width) for name, (_, width) in sizes.items()}
            yield from divides("mini_r", config.mini_r, outputs)
        for name, (inputs, _) in sizes.items():
            if config.r > inputs:
                yield ("r",), f"'{name}' has {inputs} inputs", f"write at most {inputs}"
                return


@hookimpl
def llmft_adapters() -> list[type[Miss]]:
    return [Miss]
