"""LoHa: the elementwise product of two low-rank updates (Hyeon-Woo et al. 2021)."""

from __future__ import annotations

from llmft.api import Field, hookimpl
from llmft_adapters.layer_choice import LayerChoice
from llmft_adapters.peft_methods import PeftMethod


class LoHa(PeftMethod["LoHa.Config"]):
    """W x becomes W x + (alpha / r) ((B1 A1) * (B2 A2)) x, all four trained."""

    method = "loha"
    config_class = "LoHaConfig"
    small = {"r": 4}
    not_in_the_result = ("rank_dropout", "module_dropout")

    class Config(LayerChoice):
        """PEFT's LoHaConfig, by its own names."""

        r: int = Field(8, ge=1, le=65_536, description="the rank of each of the two factors")
        alpha: int = Field(8, ge=1, le=1_000_000, description="the update is scaled by alpha / r")
        rank_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on rows of the update")
        module_dropout: float = Field(
            0.0, ge=0, lt=1, description="the share of passes that leave a layer's update out"
        )


@hookimpl
def llmft_adapters() -> list[type[LoHa]]:
    return [LoHa]
