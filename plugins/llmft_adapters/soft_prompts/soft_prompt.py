"""What prefix, p- and prompt tuning share: settings, checks, saving and loading."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from llmft.api import Adapter, AdapterConfig, Field, Refusal

WEIGHTS = "adapter_model.safetensors"
"""PEFT's file: the virtual tokens as they are used."""
ENCODER = "encoder.safetensors"
"""Ours, beside it: what the virtual tokens are computed from, to go on training."""

_DESCRIPTION = "read from the model; if set, it must agree"


class SoftPromptConfig(AdapterConfig):
    """What every soft prompt has, by PEFT's names."""

    num_virtual_tokens: int = Field(
        20, ge=1, le=10_000, description="virtual tokens before the text"
    )
    token_dim: int | None = Field(None, ge=1, description=f"the model's width; {_DESCRIPTION}")
    num_layers: int | None = Field(None, ge=1, description=f"the model's layers; {_DESCRIPTION}")
    num_attention_heads: int | None = Field(
        None, ge=1, description=f"the model's attention heads; {_DESCRIPTION}"
    )
    num_transformer_submodules: int | None = Field(
        None, ge=1, description="optional; 1, as all models here are decoders"
    )


C = TypeVar("C", bound=SoftPromptConfig)


class SoftPrompt(Adapter[C]):
    """Virtual tokens, trained through an encoder, come before every text; the base stays as it is.

    PEFT's encoders and file, so that plain PEFT loads what is saved; the forward pass is ours, so
    that checkpointing, rows laid end to end and left-padded generation work.
    """

    mergeable = False
    supports_packing = True
    IN_THE_TEXT: ClassVar[bool] = True
    """Whether virtual tokens stand among the text's embeddings, and not in each layer's cache."""
    UNSTATED: ClassVar[dict[str, Any]] = {}
    """What of a method's own settings is stated for one model, and its value for any."""

    def virtual_tokens(self) -> int:
        return int(self.config.num_virtual_tokens)

    def on_small_copy(self) -> Adapter[Any]:
        plain: dict[str, Any] = {
            "num_virtual_tokens": min(self.config.num_virtual_tokens, 3), "token_dim": None,
            "num_layers": None, "num_attention_heads": None,
            "num_transformer_submodules": None, **self.UNSTATED,
        }  # fmt: skip
        return type(self)(self.config.model_copy(update=plain))

    def check(self, model: Any) -> Iterable[Refusal]:
        if why := self._misfit(model):
            yield ("method",), f"a '{model.config.model_type}' {why}", "pick lora"
            return
        facts = model_facts(model)
        for name, fact in facts.items():
            stated = getattr(self.config, name)
            if stated is not None and stated != fact:
                yield (
                    (name,),
                    f"{name} is {stated} here, and {fact} in this model",
                    f"write {name}: {fact}, or leave it out",
                )
        if self.IN_THE_TEXT and getattr(
            model.config.get_text_config(), "hidden_size_per_layer_input", None
        ):
            yield (
                ("method",),
                f"a '{model.config.model_type}' looks the text's token ids up in every layer, and a"
                " virtual token has none",
                "pick lora",
            )
        rows = model.get_input_embeddings().weight.shape[0]
        words = model.config.get_text_config().vocab_size
        if self.IN_THE_TEXT and rows != words:
            yield (
                ("method",),
                f"a '{model.config.model_type}' has {rows} rows in its embedding and a vocab_size"
                f" of {words}; PEFT then finds no embedding, and cannot use the adapter",
                "pick lora or prefix",
            )
        places = getattr(model.config, "max_position_embeddings", None) or 0  # -1: without end
        if 0 < places <= self.config.num_virtual_tokens:
            yield (
                ("num_virtual_tokens",),
                f"this model has {places} positions, and the virtual tokens fill them all",
                f"write fewer than {places}",
            )

    def _misfit(self, model: Any) -> str:
        """Return why no soft prompt can be made for a model, as what follows its name; or ''."""
        from llmft_adapters.soft_prompts.model import takes

        if self.IN_THE_TEXT and not takes(model, "inputs_embeds"):
            return "takes token ids only, and a virtual token has none"
        config = model.config.get_text_config()
        for name in ("hidden_size", "num_hidden_layers"):
            if _for_all_layers(config, name) is None:
                return f"states no {name} of the whole model, which virtual tokens are made by"
        return ""

    def check_peft(
        self, model: Any, settings: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]
    ) -> Iterable[Refusal]:
        config = self.peft_config(model)
        kind, own = str(settings.get("peft_type"))[:40], config.peft_type.value
        if kind != own:
            what = (
                f"the folder holds an adapter of PEFT's type {kind}, and '{self.method}' is {own}"
            )
            yield ("method",), what, "pick the method that makes it"
            return
        if self.computed_by_a_network():
            what = "PEFT saves what the network gave and not the network, which would be trained"
            yield ("method",), what, "pick prefix without prefix_projection, prompt or lora"
            return
        shape = (config.num_virtual_tokens, _width(config))
        found = {name: tuple(size) for name, size in tensors.items()}
        if found != {"prompt_embeddings": shape}:
            theirs = found.get("prompt_embeddings")
            has = f"virtual tokens of the shape {list(theirs)}" if theirs else "no virtual tokens"
            fix = f"write num_virtual_tokens: {theirs[0]}" if theirs else "name another folder"
            if theirs and theirs[1:] != shape[1:]:
                fix = "take the base model that it was trained on"
            yield (
                ("num_virtual_tokens",),
                f"the folder has {has}, and here it is {list(shape)}",
                fix,
            )

    def computed_by_a_network(self) -> bool:
        """Return whether a network gives the virtual tokens, and is what is trained."""
        return False

    @abstractmethod
    def peft_config(self, model: Any) -> Any:
        """Return PEFT's config of this method for a model."""

    @abstractmethod
    def wrapped(self, model: Any, config: Any) -> Any:
        """Return the base with a fresh encoder, of the kind that PEFT's config describes."""

    def attach(self, model: Any) -> Any:
        return self.wrapped(model, self.peft_config(model))

    def save(self, model: Any, folder: Path) -> None:
        import torch
        from safetensors.torch import save_file

        config = self.peft_config(model.get_base_model())
        config.inference_mode = True  # plain PEFT then needs no encoder
        config.base_model_name_or_path = model.get_base_model().name_or_path
        config.save_pretrained(str(folder))
        with torch.no_grad():
            tokens = model.prompts().detach().cpu().contiguous()
        save_file({"prompt_embeddings": tokens}, folder / WEIGHTS)
        if not _is_table(model.encoder):
            state = {
                k: v.detach().cpu().contiguous() for k, v in model.encoder.state_dict().items()
            }
            save_file(state, folder / ENCODER)

    def load(self, model: Any, folder: Path) -> Any:
        import torch
        from safetensors.torch import load_file

        model = self.wrapped(model, self.peft_config(model))
        if _is_table(model.encoder):
            state = {"embedding.weight": load_file(folder / WEIGHTS)["prompt_embeddings"]}
        else:
            state = load_file(folder / ENCODER)
        with torch.no_grad():
            model.encoder.load_state_dict(state, strict=True)
        return model

    @contextmanager
    def disabled(self, model: Any) -> Iterator[Any]:
        was, model.enabled = model.enabled, False
        try:
            yield model
        finally:
            model.enabled = was

    def merge(self, model: Any) -> Any:
        raise NotImplementedError(
            f"'{self.method}' cannot be merged: its virtual tokens are inputs, not weights"
        )


def _width(config: Any) -> int:
    """Return how many numbers PEFT keeps for a virtual token: keys and values of every layer."""
    is_prefix = config.peft_type.value == "PREFIX_TUNING"
    return int(config.token_dim * (2 * config.num_layers if is_prefix else 1))


def model_facts(model: Any) -> dict[str, int]:
    """Return what PEFT's soft prompts ask of a model, as its config states it."""
    config = model.config.get_text_config()
    return {
        "token_dim": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "num_attention_heads": attention_heads(model) or 1,
        "num_transformer_submodules": 1,
    }


def attention_heads(model: Any) -> int:
    """Return how many heads each layer's attention has.

    0 where the model has none, as Mamba, and where its layers differ in it.
    """
    return int(_for_all_layers(model.config.get_text_config(), "num_attention_heads") or 0)


def _for_all_layers(config: Any, name: str) -> Any:
    """Return what a config states for every layer; None where it does not, or of some layers."""
    of_some = getattr(config, "per_layer_attributes", None) or ()
    return None if name in of_some else getattr(config, name, None)


def _is_table(encoder: Any) -> bool:
    """Return whether the virtual tokens are the encoder's own numbers, with nothing computed."""
    return list(encoder.state_dict()) == ["embedding.weight"]
