"""Tiny bases of every architecture, built in memory, and quantised ones; one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmft.api.settings import ModelSource
from llmft.modeling.base_model import BaseModel
from llmft.testing import measures
from llmft.testing.tiny_architectures import ARCHITECTURES as ARCHITECTURES
from llmft.testing.tiny_architectures import tiny


@pytest.fixture
def maker() -> Callable[[str], Any]:
    return tiny


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with measures.one_thread():
        yield


def quantised(model: Any, folder: Path, **options: Any) -> Any:
    """Return a model as bitsandbytes stores it, loaded as the engine loads it."""
    model.save_pretrained(folder)
    source = ModelSource(path=str(folder))
    return BaseModel(source).load(options, varlen=False).eval()
