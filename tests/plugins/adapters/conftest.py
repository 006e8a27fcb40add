"""Tiny bases of every architecture, built in memory, and quantised ones; one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from llmft_adapters.lora import dropout_mask
from peft.tuners.lora.layer import LoraLayer

from llmft.api.model_settings import ModelSource
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


def with_our_masks(model: Any) -> Any:
    """Return a model of plain PEFT layers that drop by our masks: the same ones under one seed."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            dropout_mask.take_over(layer, "default")
    return model


def mask_of(x: torch.Tensor, p: float, pieces: bool) -> torch.Tensor:
    """Return the mask that is drawn next for x, in x's shape, 1 / (1 - p) where x is kept."""
    if pieces:
        return dropout_mask.draw(x.shape[:-1].numel(), x.shape[-1], p, x.dtype).view(x.shape)
    return torch.native_dropout(torch.ones_like(x), p, True)[0]
