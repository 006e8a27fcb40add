"""The contract kit fails on adapters that break the contract, and on these only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ConfigDict
from safetensors.torch import load_file, save_file
from torch import nn

from llmft.api import Adapter, AdapterConfig, Field, Refusal
from llmft.testing import AdapterContract, measures, tiny_llama

Catches = Callable[..., None]


class ShiftConfig(AdapterConfig):
    """Settings of the smallest adapter there is."""

    scale: float = Field(1.0, gt=0, le=10, description="what the shift is multiplied with")


class Shift(Adapter[ShiftConfig]):
    """Adds a learnt vector to the logits; right in all that the contract asks."""

    method = "shift"
    Config = ShiftConfig
    mergeable = False
    supports_packing = True

    def attach(self, model: Any) -> Any:
        model.requires_grad_(False)
        head = model.get_output_embeddings()
        model.shift = nn.Parameter(0.01 * torch.randn(model.config.vocab_size))
        model.shift_on = True
        head.register_forward_hook(
            lambda _m, _i, out: out + self.config.scale * model.shift if model.shift_on else out
        )
        return model

    def save(self, model: Any, folder: Path) -> None:
        save_file({"shift": model.shift.detach().clone()}, folder / "shift.safetensors")

    def load(self, model: Any, folder: Path) -> Any:
        model = self.attach(model)
        model.shift.data.copy_(load_file(folder / "shift.safetensors")["shift"])
        return model

    @contextmanager
    def disabled(self, model: Any) -> Iterator[None]:
        model.shift_on = False
        try:
            yield
        finally:
            model.shift_on = True


class TestShift(AdapterContract):
    method_class = Shift
    configs = [{}, {"scale": 2.0}]


class TrainsTheBase(Shift):
    """Leaves a weight of the base trainable."""

    def attach(self, model: Any) -> Any:
        model = super().attach(model)
        model.get_input_embeddings().weight.requires_grad_(True)
        return model


class TrainsNothing(Shift):
    """Freezes itself."""

    def attach(self, model: Any) -> Any:
        return super().attach(model).requires_grad_(False)


class MovesTheBase(Shift):
    """Changes the base's weights where nobody looks: by a hook in the forward pass."""

    def attach(self, model: Any) -> Any:
        model = super().attach(model)
        weight = model.get_input_embeddings().weight

        def move(module: Any, inputs: Any) -> None:
            if module.training:
                weight.data.mul_(1.001)

        model.register_forward_pre_hook(move)
        return model


class SavesTheBase(Shift):
    """Writes every weight there is."""

    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        weights = {name: t.clone() for name, t in model.state_dict().items()}
        save_file(weights, folder / "all.safetensors")


class SavesAPickle(Shift):
    """Writes with torch.save, under an innocent name."""

    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        torch.save({"shift": model.shift.data}, folder / "state.json")


class SavesABin(Shift):
    """Writes a file of a kind that nobody should load."""

    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        (folder / "adapter_model.bin").write_bytes(b"weights")


class SavesTooMuch(Shift):
    """Writes more than it has: its state from before as well."""

    def save(self, model: Any, folder: Path) -> None:
        shift = model.shift.detach()
        old = {"old": shift * 0, "older": shift * 2, "oldest": shift * 3}
        save_file({"shift": shift.clone(), **old}, folder / "shift.safetensors")


class SavesNothing(Shift):
    """Forgets to save."""

    def save(self, model: Any, folder: Path) -> None:
        pass


class NeverDisabled(Shift):
    """Lies when it says that it is off."""

    def disabled(self, model: Any) -> Any:
        return nullcontext()


class StaysDisabled(Shift):
    """Does not come back."""

    def disabled(self, model: Any) -> Any:
        model.shift_on = False
        return nullcontext()


class StaysDisabledAfterAnError(Shift):
    """Comes back only where nothing went wrong."""

    @contextmanager
    def disabled(self, model: Any) -> Iterator[None]:
        model.shift_on = False
        yield
        model.shift_on = True


class LoadsRoughly(Shift):
    """Loses digits on the way."""

    def load(self, model: Any, folder: Path) -> Any:
        model = super().load(model, folder)
        model.shift.data.copy_(model.shift.data.half().float())
        return model


class LoadsFrozen(Shift):
    """Loads something that cannot be trained further."""

    def load(self, model: Any, folder: Path) -> Any:
        model = super().load(model, folder)
        model.shift.requires_grad_(False)
        return model


class ThrowsItsOwnDice(Shift):
    """Takes its start from a generator that no recipe seeds."""

    def attach(self, model: Any) -> Any:
        model = super().attach(model)
        generator = torch.Generator()
        generator.seed()
        model.shift.data.normal_(generator=generator)
        return model


class MergesNothing(Shift):
    """Calls itself mergeable and returns the base."""

    mergeable = True

    def merge(self, model: Any) -> Any:
        return tiny_llama()


class MergesHalfWay(Shift):
    """Calls itself mergeable and returns the model as it is."""

    mergeable = True

    def merge(self, model: Any) -> Any:
        return model


class MergesInSecret(Shift):
    """Merges although it says that it cannot."""

    def merge(self, model: Any) -> Any:
        return model


class HasADeadPart(Shift):
    """Has a parameter that no loss reaches."""

    def attach(self, model: Any) -> Any:
        model = super().attach(model)
        model.dead = nn.Parameter(torch.zeros(3))
        return model


class LosesGradients(Shift):
    """Gives other gradients under gradient checkpointing."""

    def attach(self, model: Any) -> Any:
        model = super().attach(model)
        if model.is_gradient_checkpointing:
            model.shift.register_hook(lambda gradient: gradient * 2)
        return model


class FitsNoModel(Shift):
    """Refuses every model."""

    def check(self, model: Any) -> Iterator[Refusal]:
        yield ("scale",), "no model will do", "none"


class RefusesByAText(Shift):
    """Names a key as a text, whose letters would be taken for keys inside keys."""

    def check(self, model: Any) -> Any:
        if type(model).__name__ == "GPT2LMHeadModel":
            yield "scale", "this model will not do", "none"


class LooseConfig(AdapterConfig):
    """Settings that let anything pass, and can be changed."""

    model_config = ConfigDict(extra="ignore", frozen=False)
    scale: float = 1.0


class HasALooseConfig(Shift):
    """Reads settings that anybody may change."""

    Config = LooseConfig  # type: ignore[assignment]


class HasOddFlags(Shift):
    """Declares by a word instead of a bool."""

    mergeable = "sometimes"  # type: ignore[assignment]


ADAPTERS: list[tuple[type[Any], str]] = [
    (TrainsTheBase, "test_only_the_adapter_requires_grad"),
    (TrainsTheBase, "test_training_lowers_the_loss_and_leaves_the_base"),
    (TrainsNothing, "test_only_the_adapter_requires_grad"),
    (MovesTheBase, "test_training_lowers_the_loss_and_leaves_the_base"),
    (MovesTheBase, "test_disabled_gives_exactly_the_base"),
    (SavesTheBase, "test_it_saves_only_itself"),
    (SavesAPickle, "test_it_saves_only_itself"),
    (SavesABin, "test_it_saves_only_itself"),
    (SavesTooMuch, "test_it_saves_only_itself"),
    (SavesNothing, "test_it_saves_only_itself"),
    (NeverDisabled, "test_disabled_gives_exactly_the_base"),
    (StaysDisabled, "test_disabled_gives_exactly_the_base"),
    (StaysDisabledAfterAnError, "test_disabled_gives_exactly_the_base"),
    (LoadsRoughly, "test_a_saved_adapter_loads_exactly"),
    (LoadsFrozen, "test_a_saved_adapter_loads_exactly"),
    (ThrowsItsOwnDice, "test_the_same_seed_gives_the_same_adapter"),
    (MergesNothing, "test_merging_gives_a_plain_model_of_the_same_answers"),
    (MergesHalfWay, "test_merging_gives_a_plain_model_of_the_same_answers"),
    (MergesInSecret, "test_merging_gives_a_plain_model_of_the_same_answers"),
    (HasADeadPart, "test_every_learnt_parameter_gets_a_gradient"),
    (LosesGradients, "test_gradient_checkpointing_gives_the_same_gradients"),
    (FitsNoModel, "test_it_works_on_one_of_the_models"),
    (RefusesByAText, "test_it_works_on_one_of_the_models"),
    (HasALooseConfig, "test_the_settings_cannot_be_changed"),
    (HasALooseConfig, "test_the_settings_refuse_unknown_keys"),
    (HasALooseConfig, "test_every_field_is_described"),
    (HasALooseConfig, "test_the_class_declares_what_its_kind_must"),
    (HasOddFlags, "test_the_class_declares_what_its_kind_must"),
]


@pytest.mark.parametrize(("adapter", "test"), ADAPTERS, ids=lambda x: getattr(x, "__name__", x))
def test_the_kit_catches_a_wrong_adapter(adapter: Any, test: str, catches: Catches) -> None:
    with measures.one_thread():
        catches(AdapterContract, adapter, test)
