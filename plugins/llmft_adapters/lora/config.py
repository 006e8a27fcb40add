"""LoRA's settings, which DoRA and QLoRA share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import field_validator

from llmft.api import AdapterConfig, Field, Line
from llmft_adapters.layer_choice import Exclusions, LayerNumbers, Targets, WholeLayers

Rank = Annotated[int, Field(ge=1, le=65_536)]

TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, le=100_000_000)]] | None,
    Field(min_length=1, max_length=100_000),
]
InTheBase = Literal["pissa", "olora"] | Annotated[str, Field(pattern=r"^pissa_niter_[1-9]\d?$")]
_NOT_OFFERED = {
    "eva": "needs the training rows, which an adapter does not get",
    "corda": "needs sample rows, which an adapter does not get",
    "lora_ga": "needs gradients of the training rows before there is an adapter",
    "loftq": "replaces the base's weights by rounded ones, so that the base could not be restored",
}


class LoraConfig(AdapterConfig):
    """PEFT's LoraConfig, by its own names."""

    r: Rank = Field(8, description="the rank of the update matrices")
    lora_alpha: float = Field(16, gt=0, le=1e6, description="the update is scaled by alpha / r")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the update's input")
    bias: Literal["none", "all", "lora_only"] = Field(
        "none",
        description="which biases are trained too: none, all of the model's, or those of the"
        " adapted layers; the base model keeps its own",
    )
    target_modules: Targets = Field(
        "all-linear",
        description="names or globs of the layers that get an update, such as [q_proj, v_proj]; a"
        " string: PEFT's regex, which matches a layer's whole name; all-linear, alone or in a list:"
        " every linear layer except the output layer. The embedding and the output layer get an"
        " update where a list has their names, such as [all-linear, embed_tokens, lm_head], or a"
        " regex matches them; globs mean neither",
    )
    exclude_modules: Exclusions = Field(
        None,
        description="names or globs of layers that get no update, or a string: a regex, as in"
        " target_modules",
    )
    target_parameters: list[Line] | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="names or globs of the stacked weights of a mixture's experts that get an"
        " update, such as [mlp.experts.down_proj], and no others; default: those that"
        " target_modules means",
    )
    use_rslora: bool = Field(False, description="scale by alpha / sqrt(r) instead")
    init_lora_weights: bool | Literal["gaussian", "orthogonal"] | InTheBase = Field(
        True,
        description="how A and B are initialised; true: B = 0. pissa (or pissa_niter_4, faster) and"
        " olora: from W's principal directions; their product is subtracted, so that nothing"
        " changes at first. The base stays as it is; the saved adapter has twice the rank, and"
        " PEFT can load it."
        " PEFT's eva, corda, lora_ga and loftq are not offered: they read data first, or round the"
        " base",
    )
    modules_to_save: WholeLayers = Field(
        None, description="layers trained in full and saved with the adapter"
    )
    trainable_token_indices: TokenIds = Field(
        None,
        description="ids of tokens whose rows of the embedding and of the output layer are trained"
        " and saved too, such as those of tokens that were added to the tokenizer",
    )
    layers_to_transform: LayerNumbers = Field(
        None, description="indices of the layers to adapt, from 0; default: all"
    )
    rank_pattern: dict[Line, Rank] = Field(
        default_factory=dict,
        max_length=1000,
        description="the rank of layers with these names or globs; the first match counts",
    )
    alpha_pattern: dict[Line, Annotated[float, Field(gt=0, le=1e6)]] = Field(
        default_factory=dict,
        max_length=1000,
        description="the alpha of layers with these names or globs; the first match counts",
    )
    pure_bf16: bool = Field(
        False,
        description="train the adapter's own weights in bfloat16, without float32 masters, as TRL"
        " does beside a quantised base: updates smaller than their rounding are lost; DoRA's"
        " magnitudes stay float32",
    )
    loraplus_lr_ratio: float | None = Field(
        None, gt=0, le=1e4, description="LoRA+: B's learning rate over A's (Hayou et al. 2024)"
    )

    @field_validator("init_lora_weights", mode="before")
    @classmethod
    def _offered(cls, value: Any) -> Any:
        name = value if isinstance(value, str) else ""
        for start, reason in _NOT_OFFERED.items():
            if name.startswith(start):
                raise ValueError(
                    f"'{name}' {reason}; write pissa, olora, gaussian, orthogonal or true"
                )
        return value

    @property
    def start_in_the_base(self) -> str | None:
        """PiSSA's or OLoRA's name in PEFT, where A and B start as a part of the base's weights."""
        how = self.init_lora_weights
        return how if isinstance(how, str) and how.startswith(("pissa", "olora")) else None
