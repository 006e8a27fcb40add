"""LoKr: a Kronecker product as the update (Yeh et al. 2023)."""

from __future__ import annotations

from llmft.api import Field, hookimpl
from llmft_adapters.layer_choice import LayerChoice
from llmft_adapters.peft_methods import PeftMethod


class LoKr(PeftMethod["LoKr.Config"]):
    """W x becomes W x + (alpha / r) (C kron (B A)) x, with C, B and A trained."""

    method = "lokr"
    config_class = "LoKrConfig"
    small = {"r": 2, "decompose_factor": -1}
    not_in_the_result = ("rank_dropout", "module_dropout", "rank_dropout_scale")

    class Config(LayerChoice):
        """PEFT's LoKrConfig, by its own names."""

        r: int = Field(8, ge=1, le=65_536, description="the rank of the larger factor")
        alpha: int = Field(8, ge=1, le=1_000_000, description="the update is scaled by alpha / r")
        rank_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on rows of the update")
        rank_dropout_scale: bool = Field(
            False, description="scale the rows that rank_dropout leaves, so that their mean stays"
        )
        module_dropout: float = Field(
            0.0, ge=0, lt=1, description="the share of passes that leave a layer's update out"
        )
        decompose_both: bool = Field(False, description="give the smaller factor a low rank too")
        decompose_factor: int = Field(
            -1,
            ge=-1,
            le=1_000_000,
            description="the size of the smaller factor; -1: about the root of the layer's width",
        )


@hookimpl
def llmft_adapters() -> list[type[LoKr]]:
    return [LoKr]
