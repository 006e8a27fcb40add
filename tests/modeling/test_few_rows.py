"""Products of few rows have the weight in front, and are the same products."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from llmft_adapters.dora import Dora
from llmft_adapters.lora import Lora

from llmft.api import SamplingParams
from llmft.modeling import few_rows
from llmft.modeling.decoding import decode
from llmft.modeling.few_rows import MOST, weights_in_front
from llmft.modeling.tiny_models import tiny_llama


@pytest.fixture
def taken(monkeypatch):
    """The shapes of what was multiplied with the weight in front."""
    shapes, pays = [], few_rows._pays

    def told(x, W):
        if found := pays(x, W):
            shapes.append(tuple(x.shape))
        return found

    monkeypatch.setattr(few_rows, "_pays", told)
    return shapes


@pytest.mark.parametrize("shape", [(2, 24), (3, 1, 24), (2, MOST // 2, 24)])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_same_product(shape, bias, taken):
    torch.manual_seed(0)
    layer = torch.nn.Linear(24, 40, bias=bias).bfloat16().requires_grad_(False)
    x = torch.randn(shape).bfloat16()
    want = layer(x)
    with weights_in_front(layer):
        found = layer(x)
    assert taken == [shape]
    assert found.is_contiguous()
    exact = F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    off = [float((some.double() - exact).norm()) for some in (found, want)]
    assert off[0] <= 1.3 * off[1]


def test_other_products_are_torchs_own(taken):
    half, wide = torch.nn.Linear(8, 8).bfloat16(), torch.nn.Linear(8, 8)
    for shape in ((1, 8), (MOST + 1, 8), (0, 8)):
        x = torch.randn(shape).bfloat16()
        assert torch.equal(few_rows.linear(x, half.weight, half.bias), half(x))
    model = torch.nn.ModuleDict({"wide": wide, "base_layer": half, "own": torch.nn.Linear(8, 8)})
    model["own"].bfloat16().forward = own = lambda x: x
    with weights_in_front(model):
        wide(torch.randn(4, 8))
        half(torch.randn(4, 8).bfloat16())
        assert model["own"].forward is own
    half(torch.randn(4, 8).bfloat16())
    assert taken == []


@pytest.mark.parametrize("method", [None, Lora, Dora])
def test_answers_are_drawn_with_it(taken, method):
    model = tiny_llama().bfloat16().requires_grad_(False)
    layers = model.config.num_hidden_layers
    if method is not None:
        options = {"method": method.method, "r": 2, "target_modules": ["q_proj", "down_proj"]}
        model = method(method.Config.model_validate(options)).attach(model).eval()
    params = SamplingParams(4, temperature=0.0)
    found = decode(model, [[5, 6, 7], [8, 9, 10]], params, batch_size=2)
    steps = [shape for shape in taken if shape[:2] in ((2, 1), (2, 32), (2, 64))]
    # Three tokens are read by seven products a layer; the output layer reads prompts' ends, too.
    assert len(steps) == 3 * 7 * layers + 4
    assert [len(answer.ids) for answer in found] == [4, 4]
    assert not any("forward" in vars(m) for m in model.modules() if type(m) is torch.nn.Linear)
