"""Prefix tuning: trained keys and values before the text's, in every layer (Li & Liang 2021)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import model_validator

from llmft.api import Field, Refusal, hookimpl
from llmft_adapters.soft_prompts.soft_prompt import SoftPrompt, SoftPromptConfig, attention_heads

ATTENTION = ("full_attention", "sliding_attention")


class Prefix(SoftPrompt["Prefix.Config"]):
    """Prefix tuning: every layer attends to trained keys and values before those of the text."""

    method = "prefix"
    supports_shared_prompt = True
    IN_THE_TEXT = False

    class Config(SoftPromptConfig):
        """PEFT's PrefixTuningConfig, by its own names."""

        prefix_projection: bool = Field(
            False,
            description="compute the prefix with a two-layer network, for more stable training",
        )
        encoder_hidden_size: int | None = Field(
            None,
            ge=1,
            le=1_000_000,
            description="the width of that network; default: the width of a layer's keys",
        )

        @model_validator(mode="after")
        def _of_the_network(self) -> Prefix.Config:
            if self.encoder_hidden_size is not None and not self.prefix_projection:
                raise ValueError(
                    "encoder_hidden_size is that of the network;"
                    " remove it, or write prefix_projection: true"
                )
            return self

    def check(self, model: Any) -> Iterable[Refusal]:
        refusals = list(super().check(model))
        yield from refusals
        if any(key == ("method",) for key, *_ in refusals):
            return
        config = model.config.get_text_config()
        if not (attention_heads(model) or _has_uneven_layers(config)):
            what = f"a '{config.model_type}' has no attention, and a prefix is keys and values"
            yield ("method",), what, "use lora, or prompt"
            return
        kinds = set(getattr(config, "layer_types", None) or ATTENTION) - set(ATTENTION)
        if kinds or getattr(config, "multi_query", False) or _has_uneven_layers(config):
            what = f"layers of the kind {', '.join(sorted(kinds))}" if kinds else "uneven keys"
            yield (
                ("method",),
                f"this model has {what}, which cannot have a prefix",
                "use lora",
            )

    def computed_by_a_network(self) -> bool:
        return self.config.prefix_projection

    def peft_config(self, model: Any) -> Any:
        from peft import PrefixTuningConfig, TaskType

        heads, size = keys_of(model)
        return PrefixTuningConfig(
            task_type=TaskType.CAUSAL_LM,
            num_virtual_tokens=self.config.num_virtual_tokens,
            num_transformer_submodules=1,
            num_layers=model.config.get_text_config().num_hidden_layers,
            # Of the keys, as PEFT has it: fewer than the queries' under grouped-query attention.
            num_attention_heads=heads,
            token_dim=heads * size,
            prefix_projection=self.config.prefix_projection,
            encoder_hidden_size=self.config.encoder_hidden_size or heads * size,
        )

    def wrapped(self, model: Any, config: Any) -> Any:
        from peft import PrefixEncoder

        from llmft_adapters.prefix.model import PrefixModel

        return PrefixModel(
            model,
            PrefixEncoder(config),
            config.num_virtual_tokens,
            layers=config.num_layers,
            heads=config.num_attention_heads,
        )


def keys_of(model: Any) -> tuple[int, int]:
    """Return how many heads a layer's keys have, and how wide each is."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return heads, size


def _has_uneven_layers(config: Any) -> bool:
    """Return whether layers differ in the shape of their keys, or share them."""
    stated = config.to_dict()
    return any(
        stated.get(n) for n in ("per_layer_config", "global_head_dim", "num_kv_shared_layers")
    )


@hookimpl
def llmft_adapters() -> list[type[Prefix]]:
    return [Prefix]
