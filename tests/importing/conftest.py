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
def stage_of(imported, registry_of_methods, tmp_path):
    """Import a text and load the recipe that it becomes: (recipe, stage)."""

    def run(text, file="config.yaml", **choices):
        found = imported(text, file, **choices)
        assert found.text, list(found.findings)
        path = tmp_path / "recipe.yaml"
        path.write_text(found.text, "utf-8")
        recipe = load_recipe(path, registry_of_methods).recipe
        return recipe, recipe.stages[0]

    return run


@pytest.fixture
def recipe_of(registry_of_methods, tmp_path):
    """Import a command and load the recipe that it becomes: (recipe, stage)."""

    def run(command):
        found = import_any(command, Choices("ms-swift"))
        assert found.text, list(found.findings)
        path = tmp_path / "recipe.yaml"
        path.write_text(found.text, "utf-8")
        recipe = load_recipe(path, registry_of_methods).recipe
        return recipe, recipe.stages[0]

    return run
