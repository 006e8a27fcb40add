"""Steps that a GPU takes in one walk: what they give, and that they run without a compiler."""

from __future__ import annotations

import pytest
import torch
from llmft_adapters.lora import linear, one_walk


@pytest.fixture
def compiled(monkeypatch):
    """Let tensors of this machine be compiled, by torch's tracer and no compiler."""
    calls: list[str] = []

    def backend(graph, _):
        calls.append("traced")
        return graph.forward

    monkeypatch.setattr(one_walk, "compiles", lambda some: True)
    for name in ("times", "_sums"):
        step = getattr(one_walk, name).step
        monkeypatch.setattr(one_walk, name, one_walk.OneWalk(step, backend))
    return calls


@pytest.mark.parametrize("rows", [40, 128, 200])
def test_both_steps_give_what_the_walks_by_themselves_give(rows, compiled):
    """A product of two types has the same bits; a sum is float32's, over bfloat16 numbers."""
    torch.manual_seed(0)
    some, others = torch.randn(2, rows, 6).bfloat16()
    scale = torch.rand(6)
    assert torch.equal(linear.times(some, scale), torch.mul(some, scale, out=some.clone()))
    total = linear.sum_over_rows(some, others)
    assert total.dtype == torch.float32
    assert torch.allclose(total, (some.double() * others.double()).sum(0).float(), rtol=1e-5)
    assert compiled == ["traced", "traced"]


def test_other_shapes_are_not_traced_again(compiled):
    """Layers have several widths, and passes several lengths."""
    for rows, width in ((8, 6), (9, 6), (30, 12), (31, 13)):
        linear.times(torch.ones(rows, width).bfloat16(), torch.ones(width))
    assert len(compiled) == 1


def test_without_a_compiler_it_runs_as_written(monkeypatch):
    """Once: what failed is not tried at every call."""
    tried: list[int] = []

    def backend(graph, _):
        tried.append(0)
        raise OSError("gcc is not here")

    double = one_walk.OneWalk(lambda some: some * 2, backend)
    for _ in range(2):
        assert double(torch.ones(3)).tolist() == [2, 2, 2]
    assert tried == [0]


def test_a_cpu_compiles_nothing():
    """Its walks are short enough for its caches."""
    assert not one_walk.compiles(torch.ones(1).expand(2 * one_walk.WORTH))
