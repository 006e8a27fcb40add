"""P-tuning: virtual tokens that a small network computes (Liu et al. 2021)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from llmft.api import Field, hookimpl
from llmft_adapters.soft_prompts.soft_prompt import SoftPrompt, SoftPromptConfig, attention_heads


class PTuning(SoftPrompt["PTuning.Config"]):
    """P-tuning: virtual tokens before the text, computed by an MLP or an LSTM that is trained."""

    method = "ptuning"

    class Config(SoftPromptConfig):
        """PEFT's PromptEncoderConfig, by its own names."""

        encoder_reparameterization_type: Literal["MLP", "LSTM"] = Field(
            "MLP", description="the network that computes the virtual tokens"
        )
        encoder_hidden_size: int | None = Field(
            None, ge=1, le=1_000_000, description="that network's width; default: the model's"
        )
        encoder_num_layers: int = Field(
            2, ge=1, le=1000, description="layers of the LSTM; an MLP always has three"
        )
        encoder_dropout: float = Field(
            0.0, ge=0, lt=1, description="dropout between the layers of the LSTM"
        )

        @model_validator(mode="after")
        def _of_the_lstm(self) -> PTuning.Config:
            if self.encoder_reparameterization_type == "LSTM":
                if self.encoder_dropout and self.encoder_num_layers == 1:
                    raise ValueError("encoder_dropout acts between layers, and there is only one")
                return self
            for name in ("encoder_num_layers", "encoder_dropout"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(
                        f"an MLP ignores {name};"
                        f" remove it, or write encoder_reparameterization_type: LSTM"
                    )
            return self

    def computed_by_a_network(self) -> bool:
        return True

    def peft_config(self, model: Any) -> Any:
        from peft import PromptEncoderConfig, TaskType

        config = model.config.get_text_config()
        width = model.get_input_embeddings().embedding_dim
        return PromptEncoderConfig(
            task_type=TaskType.CAUSAL_LM,
            num_virtual_tokens=self.config.num_virtual_tokens,
            num_transformer_submodules=1,
            num_layers=config.num_hidden_layers,
            num_attention_heads=attention_heads(model) or 1,  # PEFT asks, and does not read it
            token_dim=width,
            encoder_reparameterization_type=self.config.encoder_reparameterization_type,
            encoder_hidden_size=self.config.encoder_hidden_size or width,
            encoder_num_layers=self.config.encoder_num_layers,
            encoder_dropout=self.config.encoder_dropout,
        )

    def wrapped(self, model: Any, config: Any) -> Any:
        from peft import PromptEncoder

        from llmft_adapters.soft_prompts.model import SoftPromptModel

        return SoftPromptModel(model, PromptEncoder(config), config.num_virtual_tokens)


@hookimpl
def llmft_adapters() -> list[type[PTuning]]:
    return [PTuning]
