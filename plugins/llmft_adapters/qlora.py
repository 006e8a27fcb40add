"""QLoRA: LoRA beside a base that is stored in 4 bits (Dettmers et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from llmft.api import Field, hookimpl
from llmft_adapters.lora import Lora
from llmft_adapters.lora.config import LoraConfig


class QLora(Lora):
    """LoRA on a base stored in 4 bits: NF4, its constants quantised too, computed in bfloat16.

    Nothing of the base is cast up: norms and embeddings stay in the model's dtype. A and B are
    float32.
    """

    method = "qlora"

    class Config(LoraConfig):
        """LoRA's settings, and BitsAndBytesConfig's, by their own names."""

        load_in_4bit: Literal[True] = Field(True, description="always true: QLoRA has a 4-bit base")
        bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field("nf4", description="the 4-bit data type")
        bnb_4bit_use_double_quant: bool = Field(
            True, description="quantise the quantisation constants too"
        )
        bnb_4bit_compute_dtype: Literal["float32", "bfloat16", "float16"] = Field(
            "bfloat16", description="the data type of the computation with 4-bit weights"
        )

    def load_options(self) -> Mapping[str, Any]:
        own = set(QLora.Config.model_fields) - set(LoraConfig.model_fields)
        return {name: getattr(self.config, name) for name in sorted(own)}

    def merge(self, model: Any) -> Any:
        if getattr(model, "is_quantized", False):
            raise NotImplementedError(
                "'qlora' cannot be merged into its 4-bit base: rounding would lose the update; load"
                " the adapter on the unquantised base, and merge that"
            )
        return super().merge(model)


@hookimpl
def llmft_adapters() -> list[type[QLora]]:
    return [QLora]
