"""(IA)^3: trained scales of keys, values and inner activations (Liu et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llmft.api import Field, Line, Refusal, hookimpl
from llmft_adapters.layer_choice import LayerChoice, Targets
from llmft_adapters.lora.targets import adapted_layers, chosen_by
from llmft_adapters.peft_methods import PeftMethod


class Ia3(PeftMethod["Ia3.Config"]):
    """W x becomes l * W x, or W (l * x) in a feed-forward layer, with the vector l trained."""

    method = "ia3"
    config_class = "IA3Config"
    takes_conv1d = True
    supports_quantization = True
    not_in_the_result = ("init_ia3_weights", "feedforward_modules")

    class Config(LayerChoice):
        """PEFT's IA3Config, by its own names."""

        target_modules: Targets | None = Field(  # type: ignore[assignment]
            None,
            description="as lora's; default: those that PEFT's table has for the architecture, its"
            " keys, values and the feed-forward layer's second matrix",
        )
        feedforward_modules: list[Line] | None = Field(
            None,
            max_length=1000,
            description="which of them scale their input; default: as PEFT's table has it",
        )

    def choice(self, model: Any) -> LayerChoice:
        return LayerChoice(
            method="ia3",
            target_modules=self.config.target_modules or _table(model)[0] or "all-linear",
            **self.config.model_dump(exclude={"method", "target_modules", "feedforward_modules"}),
        )

    def check(self, model: Any) -> Iterable[Refusal]:
        kind = model.config.get_text_config().model_type
        targets, inner = _table(model)
        for key, known in (("target_modules", targets), ("feedforward_modules", inner)):
            if getattr(self.config, key) is None and not known:
                what = f"PEFT has no default for '{kind}'"
                yield (key,), what, "write names such as [k_proj, v_proj, down_proj]"
                return
        if faults := list(super().check(model)):
            yield from faults
            return
        adapted = adapted_layers(model, self.choice(model))
        for number, name in enumerate(self.config.feedforward_modules or ()):
            if not chosen_by(adapted, [name]):
                what = f"'{name}' is none of the adapted layers"
                yield ("feedforward_modules", number), what, "leave it out"

    def peft_config(self, model: Any) -> Any:
        config = super().peft_config(model)
        adapted = adapted_layers(model, self.choice(model))
        inner = self.config.feedforward_modules
        scaled = chosen_by(adapted, _table(model)[1] if inner is None else inner)
        config.target_modules, config.feedforward_modules = set(adapted), scaled
        return config

    def peft_misfits(self, model: Any, settings: Mapping[str, Any], fix: str) -> Iterable[Refusal]:
        key, theirs = ("feedforward_modules",), settings.get("feedforward_modules")
        if isinstance(theirs, str) and theirs:
            what = f"the folder's feedforward_modules is the regular expression {theirs[:60]!r}"
            yield key, what, "save it with the layers' names in its place"
            return
        ours = self.peft_config(model)
        inner = {
            name
            for name in ours.target_modules
            if any(name.endswith(str(end)) for end in theirs or ())
        }
        if different := sorted(inner ^ set(ours.feedforward_modules)):
            where = "in the folder" if different[0] in inner else "here"
            what = f"'{different[0]}' scales its input {where} only"
            names = sorted({name.rpartition(".")[2] for name in inner})
            yield key, what, f"write feedforward_modules: [{', '.join(names)}]"


def _table(model: Any) -> tuple[list[str], list[str]]:
    """Return the layers that PEFT adapts by default, and those of them in feed-forward blocks."""
    from peft.utils import constants

    kind = model.config.get_text_config().model_type
    tables = (
        constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
        constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    )
    first, second = (list(table.get(kind, ())) for table in tables)
    return first, second


@hookimpl
def llmft_adapters() -> list[type[Ia3]]:
    return [Ia3]
