"""A way to load a recipe's text, and to see what it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from llmft.api.errors import Fault, LlmftError
from llmft.recipes.job import Job
from llmft.recipes.load import load_recipe
from tests.recipes.fakes import FakeRegistry

Load = Callable[..., Job]
Faults = Callable[..., tuple[Fault, ...]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a recipe's text (or bytes) with the fake registry."""

    def loaded(text: str | bytes, overrides: Sequence[str] = ()) -> Job:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_recipe(path, FakeRegistry(), overrides)

    return loaded


@pytest.fixture
def faults(load: Load) -> Faults:
    """Return the faults of a recipe's text; none where it loads."""

    def found(text: str | bytes, overrides: Sequence[str] = ()) -> tuple[Fault, ...]:
        try:
            load(text, overrides)
        except LlmftError as error:
            return error.faults
        return ()

    return found
