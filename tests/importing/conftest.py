"""A peer's configuration as text, imported."""

from __future__ import annotations

import pytest

from llmft.cli.commands.import_ import import_any
from llmft.cli.commands.import_peer import Choices, import_yaml
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry


@pytest.fixture(scope="session")
def registry_of_methods():
    return Registry.discover()


@pytest.fixture
def imported(registry_of_methods):
    """Import a text as `llmft import FILE` does."""

    def run(text, file="config.yaml", **choices):
        return import_yaml(text, file, Choices(**choices), registry_of_methods)

    return run


@pytest.fixture
def loaded(registry_of_methods, tmp_path):
    """Load the recipe that an import wrote: (recipe, stage)."""

    def run(found):
        assert found.text, list(found.findings)
        path = tmp_path / "recipe.yaml"
        path.write_text(found.text, "utf-8")
        recipe = load_recipe(path, registry_of_methods).recipe
        return recipe, recipe.stages[0]

    return run


@pytest.fixture
def stage_of(imported, loaded):
    """Import a text and load the recipe that it becomes: (recipe, stage)."""
    return lambda text, file="config.yaml", **choices: loaded(imported(text, file, **choices))


@pytest.fixture
def recipe_of(loaded):
    """Import a command and load the recipe that it becomes: (recipe, stage)."""
    return lambda command: loaded(import_any(command, Choices("ms-swift")))
