"""OFT: blocks of a layer's inputs turned by trained rotations (Qiu et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llmft.api import Field, Refusal, hookimpl
from llmft_adapters.layer_choice import LayerChoice
from llmft_adapters.peft_methods import PeftMethod, divides


class Oft(PeftMethod["Oft.Config"]):
    """W x becomes W R x, with R block-diagonal and orthogonal."""

    method = "oft"
    config_class = "OFTConfig"
    small = {"oft_block_size": 2}
    not_in_the_result = ("module_dropout", "r", "oft_block_size")  # the last two: by the shapes

    class Config(LayerChoice):
        """PEFT's OFTConfig, by its own names, less module_dropout, which PEFT never applies.

        Less coft, too: PEFT then changes the weights in each forward pass, of an evaluation too.
        """

        oft_block_size: int = Field(32, ge=2, le=65_536, description="the inputs of each rotation")
        block_share: bool = Field(False, description="give all blocks of a layer one rotation")
        use_cayley_neumann: bool = Field(
            True, description="approximate the inverse in a rotation by a sum, which is faster"
        )
        num_cayley_neumann_terms: int = Field(5, ge=1, le=100, description="the terms of that sum")

    def layer_misfits(self, sizes: Mapping[str, tuple[int, int]]) -> Iterable[Refusal]:
        inputs = {name: (width, width) for name, (width, _) in sizes.items()}
        yield from divides("oft_block_size", self.config.oft_block_size, inputs)


@hookimpl
def llmft_adapters() -> list[type[Oft]]:
    return [Oft]
