"""PEFT's further methods that change linear layers one by one, through one thin bridge.

A method is its settings, by PEFT's names, and what of them does not fit a layer. Not among them:
AdaLoRA, which changes weights and the loss in each step, and BOFT, which depends on a CUDA kernel
(docs/adapters.md says why).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Self, TypeVar

from llmft.api import Refusal
from llmft_adapters.layer_choice import LayerChoice
from llmft_adapters.lora.targets import (
    adapted_layers,
    layer_misfits,
    targets_for_peft,
    whole_layers_for_peft,
)
from llmft_adapters.peft_adapter import PeftAdapter

C = TypeVar("C", bound=LayerChoice)


class PeftMethod(PeftAdapter[C]):
    """An adapter by one of PEFT's configs, whose settings have PEFT's names."""

    supports_quantization = False
    config_class: ClassVar[str]
    """The name of its config in PEFT."""
    takes_conv1d: ClassVar[bool] = False
    """Whether PEFT's class changes GPT-2's Conv1D layers too."""
    small: ClassVar[Mapping[str, Any]] = {}
    """Settings that fit a small copy of any model."""
    not_in_the_result: ClassVar[tuple[str, ...]] = ()
    """PEFT's settings of how it starts or drops out, which a trained adapter's output lacks."""

    def layer_misfits(self, sizes: Mapping[str, tuple[int, int]]) -> Iterable[Refusal]:
        """Yield what does not fit the layers, of which it gets inputs and outputs by name."""
        return ()

    def choice(self, model: Any) -> LayerChoice:
        """Return which layers are adapted."""
        return self.config

    def check(self, model: Any) -> Iterable[Refusal]:
        choice = self.choice(model)
        if faults := list(layer_misfits(model, choice)):
            yield from faults
            return
        names = adapted_layers(model, choice)
        if not self.takes_conv1d and (odd := _conv1d(model, names)):
            what = (
                f"'{odd[0]}' is a Conv1D layer, and PEFT's {self.method} takes Linear layers only"
            )
            yield ("target_modules",), what, "write adapter: {method: lora}, or another base"
            return
        yield from self.layer_misfits({name: _sizes(model.get_submodule(name)) for name in names})

    def check_peft(
        self, model: Any, settings: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]
    ) -> Iterable[Refusal]:
        from llmft_adapters.peft_methods import from_peft

        yield from from_peft.misfits(self, model, settings, tensors)

    def peft_misfits(self, model: Any, settings: Mapping[str, Any], fix: str) -> Iterable[Refusal]:
        """Yield what else in a folder's settings is not as here, and shows in no tensor."""
        return ()

    def for_shapes(self, config: Any) -> Any:
        """Return PEFT's config as it can be attached on torch's meta device."""
        return config

    def on_small_copy(self) -> Self:
        return type(self)(
            self.config.model_copy(update={"layers_to_transform": None, **self.small})
        )

    def starts_as_base(self) -> bool:
        return True

    def peft_config(self, model: Any) -> Any:
        import peft

        cls, choice = getattr(peft, self.config_class), self.choice(model)
        own = self.config.model_dump(exclude={"method", *LayerChoice.model_fields})
        named = {field.name for field in dataclasses.fields(cls)}
        if "fan_in_fan_out" in named:
            own["fan_in_fan_out"] = bool(_conv1d(model, adapted_layers(model, choice)))
        return cls(
            task_type=peft.TaskType.CAUSAL_LM,
            target_modules=targets_for_peft(model, choice),
            modules_to_save=whole_layers_for_peft(model, choice),
            **own,
        )


def divides(key: str, size: int, sizes: Mapping[str, tuple[int, int]]) -> Iterator[Refusal]:
    """Yield that a size divides a layer's inputs or outputs with a remainder, where it does."""
    for name, both in sizes.items():
        for what, width in zip(("inputs", "outputs"), both, strict=True):
            if width % size:
                yield (key,), f"{size} does not divide the {width} {what} of '{name}'", _fix(sizes)
                return


def _fix(sizes: Mapping[str, tuple[int, int]]) -> str:
    import math

    most = math.gcd(*(width for both in sizes.values() for width in both))
    return f"write a divisor of {most}"


def _conv1d(model: Any, names: Iterable[str]) -> list[str]:
    return [name for name in names if type(model.get_submodule(name)).__name__ == "Conv1D"]


def _sizes(layer: Any) -> tuple[int, int]:
    """Return how many inputs and outputs a layer has."""
    first, second = layer.weight.shape
    return (first, second) if type(layer).__name__ == "Conv1D" else (second, first)
