"""LoRA's settings, which DoRA and QLoRA share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import field_validator

from llmft.api import AdapterConfig, Field, Line

Rank = Annotated[int, Field(ge=1, le=65_536)]
Layer = Annotated[int, Field(ge=0, le=100_000)]

_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "eva", "lora_ga")


class LoraConfig(AdapterConfig):
    """PEFT's LoraConfig, by its own names."""

    r: Rank = Field(8, description="the rank of the update")
    lora_alpha: float = Field(16, gt=0, le=1e6, description="the update is scaled by alpha / r")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the update's input")
    bias: Literal["none", "all", "lora_only"] = Field(
        "none",
        description="which biases are trained too: none, all of the model's, or those of the"
        " adapted layers; the base keeps its own",
    )
    target_modules: Literal["all-linear"] | list[Line] = Field(
        "all-linear",
        description="names or globs of the layers that get an update, such as"
        " [q_proj, v_proj]; all-linear takes every linear layer but the output",
    )
    use_rslora: bool = Field(False, description="scale by alpha / sqrt(r) instead")
    init_lora_weights: bool | Literal["gaussian", "orthogonal"] = Field(
        True,
        description="how A and B start; true: B = 0, so that nothing changes at first. PEFT's"
        " pissa, olora, loftq and eva are not offered: they change the base, or read data first",
    )
    modules_to_save: list[Line] | None = Field(
        None, min_length=1, max_length=100, description="layers trained whole and saved along"
    )
    layers_to_transform: list[Layer] | None = Field(
        None,
        min_length=1,
        max_length=10_000,
        description="the numbers of the layers to adapt, from 0; default: all",
    )
    rank_pattern: dict[Line, Rank] = Field(
        default_factory=dict,
        max_length=1000,
        description="another rank for layers whose name ends with, or matches, a regex",
    )
    alpha_pattern: dict[Line, Annotated[float, Field(gt=0, le=1e6)]] = Field(
        default_factory=dict,
        max_length=1000,
        description="another alpha for layers whose name ends with, or matches, a regex",
    )
    loraplus_lr_ratio: float | None = Field(
        None, gt=0, le=1e4, description="LoRA+: B's learning rate over A's (Hayou et al. 2024)"
    )

    @field_validator("init_lora_weights", mode="before")
    @classmethod
    def _leaves_the_base(cls, value: Any) -> Any:
        if isinstance(value, str) and value.startswith(_CHANGE_THE_BASE):
            raise ValueError(
                f"'{value}' rewrites the base's weights or reads data before training, so that the"
                " base could not be had back; write true, gaussian or orthogonal"
            )
        return value
