"""Products of few rows have the weight in front, and are the same products."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llmft.api import SamplingParams
from llmft.modeling import few_rows
from llmft.modeling.decoding import decode
from llmft.modeling.few_rows import MOST, weights_in_front
from llmft.modeling.tiny_models import tiny_llama


@pytest.fixture
def taken(monkeypatch):
    """The shapes of what was multiplied with the weight in front."""
    shapes, product = [], few_rows._product

    def told(x, *more):
        shapes.append(tuple(x.shape))
        return product(x, *more)

    monkeypatch.setattr(few_rows, "_product", told)
    return shapes


@pytest.mark.parametrize("shape", [(2, 24), (3, 1, 24), (2, MOST // 2, 24)])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_same_product(shape, bias, taken):
    torch.manual_seed(0)
    layer = torch.nn.Linear(24, 40, bias=bias).bfloat16().requires_grad_(False)
    x = torch.randn(shape).bfloat16()
    want = F.linear(x, layer.weight, layer.bias)
    with weights_in_front(layer):
        found = layer(x)
    assert taken == [shape]
    assert found.is_contiguous()
    exact = F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    off = [float((some.double() - exact).norm()) for some in (found, want)]
    assert off[0] <= 1.3 * off[1]


def test_other_products_are_torchs_own(taken):
    half, wide = torch.nn.Linear(8, 8).bfloat16(), torch.nn.Linear(8, 8)
    with weights_in_front(half):
        half(torch.randn(1, 8).bfloat16())
        half(torch.randn(MOST + 1, 8).bfloat16())
        half(torch.randn(0, 8).bfloat16())
        wide(torch.randn(4, 8))
    with weights_in_front(wide):
        wide(torch.randn(4, 8))
        half(torch.randn(4, 8).bfloat16())
    half(torch.randn(4, 8).bfloat16())
    assert taken == []


def test_answers_are_drawn_with_it(taken):
    model = tiny_llama().bfloat16().requires_grad_(False)
    params = SamplingParams(4, temperature=0.0)
    found = decode(model, [[5, 6, 7], [8, 9, 10]], params, batch_size=2)
    layers = model.config.num_hidden_layers
    steps = [shape for shape in taken if shape[:2] == (2, 1)]
    assert len(steps) == 3 * 7 * layers + 4  # the output layer reads the prompts' last tokens, too
    assert [len(answer.ids) for answer in found] == [4, 4]
