"""Full fine-tuning: the base's own weights are trained, all of them or some."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

from pydantic import field_validator

from llmft.api import Adapter, AdapterConfig, Field, Line, Refusal, hookimpl
from llmft_adapters.full.parameters import misfits, trained_parameters
from llmft_adapters.vocabulary import vocabulary_layers

Patterns = Annotated[list[Line], Field(max_length=1000)]


class Full(Adapter["Full.Config"]):
    """Full fine-tuning: the model's own weights are trained and saved, as a model folder."""

    method = "full"
    mergeable = True
    trains_base = True
    supports_quantization = False
    supports_packing = True
    supports_shared_prompt = True

    class Config(AdapterConfig):
        """Which weights are trained, and in which type; names as other trainers have them."""

        trainable_parameters: Patterns | None = Field(
            None,
            description="names, parts of names or globs of the weights that are trained, such as"
            " [lm_head, self_attn, '*.bias']; default: all",
        )
        freeze_parameters: Patterns = Field(
            default_factory=list,
            description="names, parts of names or globs of weights that stay as they are",
        )
        freeze_trainable_layers: int | None = Field(
            None,
            ge=1,
            le=100_000,
            description="train only the last so many layers; what stands outside of the layers is"
            " then trained only if trainable_parameters names it",
        )
        pure_bf16: bool = Field(
            False,
            description="train the bfloat16 weights themselves, without float32 masters: 8 bytes"
            " for each weight with AdamW and not 16 or more, and updates smaller than its rounding"
            " are lost; needs model.dtype: bfloat16",
        )
        max_shard_size: Annotated[str, Field(pattern=r"^[1-9]\d{0,3}(\.\d{1,3})?(KB|MB|GB)$")] = (
            Field("5GB", description="the size of a file of the saved weights at most")
        )

        @field_validator("trainable_parameters", mode="before")
        @classmethod
        def _some(cls, value: Any) -> Any:
            if value == []:
                raise ValueError("it is empty, so that nothing is trained; write names, or drop it")
            return value

    def check(self, model: Any) -> Iterable[Refusal]:
        yield from misfits(model, self.config)

    def on_small_copy(self) -> Full:
        return Full(Full.Config(method=self.method))

    def trains_new_tokens(self, model: Any) -> bool:
        trained = {id(parameter) for parameter in trained_parameters(model, self.config)}
        return all(id(layer.weight) in trained for _, layer in vocabulary_layers(model))

    def trains_in_float32(self) -> bool:
        return not self.config.pure_bf16

    def starts_as_base(self) -> bool:
        return True

    def attach(self, model: Any) -> Any:
        return self._prepared(model)

    def load(self, model: Any, folder: Path) -> Any:
        from llmft_adapters.full.files import load_weights

        load_weights(model, folder)
        return self._prepared(model)

    def _prepared(self, model: Any) -> Any:
        from llmft_adapters.full.files import remember_names

        remember_names(model)
        model.requires_grad_(False)
        for parameter in trained_parameters(model, self.config):
            parameter.requires_grad_(True)
        return model

    def save(self, model: Any, folder: Path) -> None:
        from llmft_adapters.full.files import save_model

        save_model(model, folder, self.config.max_shard_size)

    def disabled(self, model: Any) -> AbstractContextManager[Any]:
        raise NotImplementedError("the base's weights are the trained ones: load the base again")

    def merge(self, model: Any) -> Any:
        return model.requires_grad_(False)


@hookimpl
def llmft_adapters() -> list[type[Full]]:
    return [Full]
