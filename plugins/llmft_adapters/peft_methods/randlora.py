"""RandLoRA: a full-rank sum of random low-rank matrices (Albert et al. 2025)."""

from __future__ import annotations

from pydantic import model_validator

from llmft.api import Field, hookimpl
from llmft_adapters.layer_choice import LayerChoice
from llmft_adapters.peft_methods import PeftMethod


class RandLora(PeftMethod["RandLora.Config"]):
    """W x becomes W x + scaled sums of B_i L_i A G_i x: the diagonals L and G are trained."""

    method = "randlora"
    config_class = "RandLoraConfig"
    takes_conv1d = True
    supports_quantization = True
    small = {"r": 4}
    not_in_the_result = ("randlora_dropout",)

    class Config(LayerChoice):
        """PEFT's RandLoraConfig, by its own names."""

        r: int = Field(
            32, ge=1, le=65_536, description="the rank of each random matrix; lower: more trained"
        )
        randlora_alpha: float = Field(
            640.0, gt=0, le=1e9, description="the update is scaled by alpha / r, as LoRA's"
        )
        randlora_dropout: float = Field(
            0.0, ge=0, lt=1, description="dropout on the update's input"
        )
        projection_prng_key: int = Field(
            0, ge=0, lt=2**63, description="the seed of the frozen random matrices"
        )
        save_projection: bool = Field(
            True,
            description="save the frozen random matrices too, so that no other machine has to draw"
            " them again",
        )
        sparse: bool = Field(
            False, description="random matrices of -1, 0 and 1, one in three of them 0"
        )
        very_sparse: bool = Field(False, description="the same, and nearly all of them 0")

        @model_validator(mode="after")
        def _one_of_them(self) -> RandLora.Config:
            if self.sparse and self.very_sparse:
                raise ValueError("sparse and very_sparse are two choices; write one")
            return self


@hookimpl
def llmft_adapters() -> list[type[RandLora]]:
    return [RandLora]
