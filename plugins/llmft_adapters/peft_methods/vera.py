"""VeRA: trained scales of random matrices that all layers share (Kopiczko et al. 2023)."""

from __future__ import annotations

from llmft.api import Field, hookimpl
from llmft_adapters.layer_choice import LayerChoice
from llmft_adapters.peft_methods import PeftMethod


class Vera(PeftMethod["Vera.Config"]):
    """W x becomes W x + b * B (d * A x), with A and B random, and the vectors b and d trained."""

    method = "vera"
    config_class = "VeraConfig"
    takes_conv1d = True
    small = {"r": 4}
    not_in_the_result = ("vera_dropout", "d_initial")

    class Config(LayerChoice):
        """PEFT's VeraConfig, by its own names."""

        r: int = Field(256, ge=1, le=65_536, description="the rank of the random matrices")
        vera_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the update's input")
        d_initial: float = Field(0.1, ge=-100, le=100, description="what d starts as")
        projection_prng_key: int = Field(
            0, ge=0, lt=2**63, description="the seed of the frozen random matrices"
        )
        save_projection: bool = Field(
            True,
            description="save the frozen random matrices too, so that no other machine has to draw"
            " them again",
        )


@hookimpl
def llmft_adapters() -> list[type[Vera]]:
    return [Vera]
