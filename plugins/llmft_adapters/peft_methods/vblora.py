"""VB-LoRA: low-rank updates put together from one bank of vectors (Li et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import model_validator

from llmft.api import Field, Refusal, hookimpl
from llmft_adapters.layer_choice import LayerChoice
from llmft_adapters.peft_methods import PeftMethod, divides


class VBLoRA(PeftMethod["VBLoRA.Config"]):
    """A and B consist of vectors of a bank that all layers share: of the topk, each its share."""

    method = "vblora"
    config_class = "VBLoRAConfig"
    takes_conv1d = True
    small = {"r": 2, "num_vectors": 8, "vector_length": 2}
    not_in_the_result = ("vblora_dropout", "init_vector_bank_bound", "init_logits_std")

    class Config(LayerChoice):
        """PEFT's VBLoRAConfig, by its own names."""

        r: int = Field(4, ge=1, le=65_536, description="the rank of the update matrices")
        num_vectors: int = Field(256, ge=1, le=1_000_000, description="the vectors in the bank")
        vector_length: int = Field(
            256, ge=1, le=1_000_000, description="their length; it divides the layers' widths"
        )
        topk: int = Field(2, ge=1, le=1000, description="how many vectors make one part of A or B")
        vblora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the update's input")
        init_vector_bank_bound: float = Field(
            0.02, gt=0, le=100, description="the bank starts uniform between minus this and this"
        )
        init_logits_std: float = Field(
            0.1, gt=0, le=100, description="the standard deviation of the first choice's logits"
        )

        @model_validator(mode="after")
        def _enough_vectors(self) -> VBLoRA.Config:
            if self.topk > self.num_vectors:
                raise ValueError(f"topk is {self.topk}, and the bank has {self.num_vectors}")
            return self

    def starts_as_base(self) -> bool:
        return False  # the bank is random

    def layer_misfits(self, sizes: Mapping[str, tuple[int, int]]) -> Iterable[Refusal]:
        yield from divides("vector_length", self.config.vector_length, sizes)


@hookimpl
def llmft_adapters() -> list[type[VBLoRA]]:
    return [VBLoRA]
