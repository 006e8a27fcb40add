"""Models that a recipe's methods read beside its own, such as a teacher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmft.api.model_settings import OtherModel
from llmft.recipes.tree import KeyPath

if TYPE_CHECKING:
    from llmft.recipes.recipe import Recipe, Stage


def other_models(recipe: Recipe) -> Iterator[tuple[KeyPath, OtherModel]]:
    """Yield each model that a stage's method names, with its key in the recipe."""
    for number, stage in enumerate(recipe.stages):
        for key, asked in models_of(stage):
            yield ("stages", number, *key), asked


def name_of(asked: OtherModel) -> str:
    """Return what a run's lock calls a model: its path, and the revision where one is named."""
    return asked.path if asked.revision is None else f"{asked.path}@{asked.revision}"


def models_of(stage: Stage) -> Iterator[tuple[KeyPath, OtherModel]]:
    """Yield each model that the method of a stage names, with its key in the stage."""
    for name in type(stage.work).model_fields:
        if isinstance(asked := getattr(stage.work, name), OtherModel):
            yield (stage.work_kind, name), asked
