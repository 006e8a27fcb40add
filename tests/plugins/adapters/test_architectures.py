"""Each adapter on each architecture: it trains, or `check` refuses with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from llmft_adapters.dora import Dora
from llmft_adapters.lora import Lora
from llmft_adapters.prefix import Prefix
from llmft_adapters.prompt import PromptTuning
from llmft_adapters.ptuning import PTuning
from llmft_adapters.qlora import QLora

from llmft.api.model_settings import ModelSource
from llmft.modeling import attention
from llmft.modeling.base_model import BaseModel
from llmft.testing import measures

from .conftest import ARCHITECTURES, quantised, tiny

ADAPTERS = [Lora, QLora, Dora, Prefix, PTuning, PromptTuning]
IN_4_BITS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
             "bnb_4bit_compute_dtype": "float32"}  # fmt: skip


@pytest.mark.parametrize("cls", ADAPTERS, ids=lambda cls: cls.method)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_trains_and_leaves_the_base(architecture: str, cls: Any) -> None:
    base = tiny(architecture)
    adapter = cls(cls.Config(method=cls.method))
    assert not list(adapter.check(tiny(architecture).to("meta")))
    _trains(adapter, base, tiny(architecture))


@pytest.mark.parametrize("cls", ADAPTERS, ids=lambda cls: cls.method)
@pytest.mark.parametrize("architecture", [
    a if a in ("llama", "gpt2") else pytest.param(a, marks=pytest.mark.slow) for a in ARCHITECTURES
])  # fmt: skip
@pytest.mark.parametrize("options", [IN_4_BITS, {"load_in_8bit": True}], ids=["4bit", "8bit"])
def test_it_trains_on_a_quantised_base(
    options: dict[str, Any], architecture: str, cls: Any, tmp_path: Path
) -> None:
    base, fresh = (
        quantised(tiny(architecture), tmp_path / name, **options) for name in ("base", "fresh")
    )
    _trains(cls(cls.Config(method=cls.method)), base, fresh)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("cls", ADAPTERS, ids=lambda cls: cls.method)
def test_rows_end_to_end_are_as_rows_alone(architecture: str, cls: Any) -> None:
    base = tiny(architecture)
    if not attention.supports(type(base), base.config):
        pytest.skip("the engine pads this architecture's rows")
    found = []
    for packed in (False, True):
        base = tiny(architecture)
        if packed:
            measures.pack_padding_free(base)
        measures.seed()
        model = cls(cls.Config(method=cls.method, **_few(cls))).attach(base)
        measures.nudge(model)
        found.append(measures.row_losses(model))
    assert measures.distance(*found) <= 1e-5


def test_bert_is_loaded_as_a_decoder_that_looks_only_backwards(tmp_path: Path) -> None:
    model = tiny("bert")
    model.config.is_decoder = False
    model.save_pretrained(tmp_path)
    source = ModelSource(path=str(tmp_path))
    assert BaseModel(source).empty().config.is_decoder
    base = BaseModel(source).load({}, varlen=False).eval()
    ids = measures.tokens()
    changed = ids.clone()
    changed[:, 6:] = 3
    with torch.no_grad():
        first, second = base(input_ids=ids).logits, base(input_ids=changed).logits
    assert measures.distance(first[:, :6], second[:, :6]) <= 1e-6
    assert not torch.allclose(first[:, 6:], second[:, 6:])


def _few(cls: Any) -> dict[str, Any]:
    return {"num_virtual_tokens": 4} if "num_virtual_tokens" in cls.Config.model_fields else {}


def _trains(adapter: Any, base: Any, fresh: Any) -> None:
    weights = dict(base.named_parameters())
    measures.seed()
    model = adapter.attach(base)
    before = measures.loss(model)
    measures.train(model, steps=6, learning_rate=1e-2)
    assert measures.loss(model) < before
    for name, parameter in fresh.named_parameters():
        assert measures.same(weights[name], parameter), name
