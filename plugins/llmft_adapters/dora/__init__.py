"""DoRA: a trained magnitude for each row of a LoRA-updated weight (Liu et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import model_validator

from llmft.api import Field, Refusal, hookimpl
from llmft_adapters.lora import Lora
from llmft_adapters.lora.config import LoraConfig


class Dora(Lora):
    """Weight-decomposed LoRA: m (W + s B A) / |W + s B A|, with m, A and B trained.

    PEFT's layers and files, with a forward pass of our own that never forms the full update.
    """

    method = "dora"

    class Config(LoraConfig):
        """LoRA's settings, and DoRA's one, by PEFT's names."""

        ephemeral_gpu_offload: bool = Field(
            False, description="initialise on the GPU the layers whose weights are on the CPU"
        )

        @model_validator(mode="after")
        def _starts_as_the_base(self) -> Dora.Config:
            if self.start_in_the_base:
                raise ValueError(
                    f"dora starts with B = 0, and not by '{self.init_lora_weights}'; remove"
                    " init_lora_weights, or use method lora"
                )
            return self

    def check(self, model: Any) -> Iterable[Refusal]:
        yield from super().check(model)
        if self.config.ephemeral_gpu_offload and not _has_gpu():  # type: ignore[attr-defined]
            yield (
                ("ephemeral_gpu_offload",),
                "there is no GPU here to move weights to",
                "write ephemeral_gpu_offload: false",
            )

    def peft_config(self, model: Any) -> Any:
        from peft.tuners.lora.config import LoraRuntimeConfig

        config = super().peft_config(model)
        config.use_dora = True
        config.runtime_config = LoraRuntimeConfig(
            ephemeral_gpu_offload=self.config.ephemeral_gpu_offload  # type: ignore[attr-defined]
        )
        return config

    def prepared(self, model: Any, kept: Any) -> Any:
        from llmft_adapters.dora.layer import take_over

        take_over(model)
        return super().prepared(model, kept)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available() or torch.xpu.is_available()


@hookimpl
def llmft_adapters() -> list[type[Dora]]:
    return [Dora]
