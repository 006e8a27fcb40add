"""Whether a recipe has a setting, asked of the classes that check recipes: tables may be ahead."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel

from llmft.api.evaluate_settings import EvaluateSettings
from llmft.api.model_settings import ModelSource
from llmft.api.push_settings import PushToHub
from llmft.api.train_settings import TrainSettings
from llmft.recipes.recipe import Recipe
from llmft.registry.registry import Registry

_BLOCKS: dict[str, type[BaseModel]] = {
    "model": ModelSource,
    "train": TrainSettings,
    "evaluate": EvaluateSettings,
    "push_to_hub": PushToHub,
}
_KINDS = {"adapter": "adapter", "alignment": "alignment", "data": "dataset"}


class Schema:
    """The settings of this version and of the installed methods."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def has_method(self, block: str, name: str) -> bool:
        """Return whether a block's method is installed: adapter, alignment or data."""
        return name in self.registry.names(_KINDS[block])

    def has_method_of(self, home: str, methods: dict[str, str]) -> bool:
        """Return whether the method of a setting's block is installed, where it has methods."""
        block = home.partition(".")[0]
        return block not in _KINDS or self.has_method(block, methods.get(block, ""))

    def has(self, home: str, methods: dict[str, str]) -> bool:
        """Return whether a setting exists; methods: the chosen method of each block."""
        block, _, rest = home.partition(".")
        if not rest:
            return block in Recipe.model_fields
        if block in _KINDS:
            method = methods.get(block, "")
            if not self.has_method(block, method):
                return False
            if rest == "method":
                return True
            config: type[BaseModel] = self.registry.method(_KINDS[block], method).Config  # type: ignore[arg-type]
            return _has(config, rest)
        return block in _BLOCKS and _has(_BLOCKS[block], rest)


def _has(model: type[BaseModel], path: str) -> bool:
    name, _, rest = path.partition(".")
    field = model.model_fields.get(name)
    if field is None:
        return False
    if not rest:
        return True
    inner = next(iter(_models(field.annotation)), None)
    return inner is None or _has(inner, rest)


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models inside an annotation; none where it is a plain mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]
