"""Bytes of tensors, counted by hand: by what they are for, while they live, and at the peak."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes import functional as F
from bitsandbytes import matmul_4bit

from llmft.planning.memory_tracker import (
    ACTIVATIONS,
    ADAPTER,
    CACHE,
    LOGITS,
    OPTIMIZER,
    WEIGHTS,
    MemoryTracker,
    Peak,
)

FLOAT = 4


def live(memory: MemoryTracker) -> dict[str, int]:
    return {kind: size for kind, size in memory.live.items() if size}


def test_a_tensor_is_counted_once_until_it_is_freed():
    memory = MemoryTracker()
    one = torch.zeros(10)
    memory.add(one, WEIGHTS)
    memory.add(one[2:5])  # a view has no bytes of its own
    assert live(memory) == {WEIGHTS: 10 * FLOAT}
    other = torch.zeros(5)
    memory.add(other)
    assert live(memory) == {WEIGHTS: 10 * FLOAT, ACTIVATIONS: 5 * FLOAT}
    del one
    assert live(memory) == {ACTIVATIONS: 5 * FLOAT}
    memory.add(other, ADAPTER)
    assert live(memory) == {ADAPTER: 5 * FLOAT}
    memory.add(other)
    assert live(memory) == {ADAPTER: 5 * FLOAT}
    del other
    assert live(memory) == {}
    memory.add(None)
    assert live(memory) == {}


def test_what_an_operation_makes_is_seen_and_told_apart():
    memory = MemoryTracker()
    memory.vocabulary = 30
    x = torch.ones(2, 3)
    with memory:
        y = x + 1
        logits = torch.zeros(2, 30)
        line, ids = torch.zeros(30), torch.zeros(2, 30, dtype=torch.long)
        turned = torch.zeros(30, 2)
        parts = torch.sort(torch.ones(4))  # two tensors at once
        with memory.making(OPTIMIZER):
            state = torch.zeros(7)
        after = torch.zeros(1)
    assert live(memory) == {
        LOGITS: 60 * FLOAT,
        OPTIMIZER: 7 * FLOAT,
        ACTIVATIONS: (6 + 30 + 60 + 1) * FLOAT + 60 * 8 + 4 * FLOAT + 4 * 8,
    }
    del y, logits, line, ids, turned, parts, state, after


def test_a_peak_is_the_most_that_lived_at_once_in_its_phase():
    memory = MemoryTracker()
    weights = torch.zeros(10)
    memory.add(weights, WEIGHTS)
    memory.begin("one")
    with memory:
        x = torch.zeros(100)
        del x
        y = torch.zeros(20)
    memory.begin("two")
    memory.note(CACHE, 8)
    memory.note(CACHE, 7)  # less than that: no news
    del y
    memory.begin("three")
    memory.close()
    memory.close()
    assert memory.peaks == [
        Peak("one", {WEIGHTS: 40, ACTIVATIONS: 400}),
        Peak("two", {WEIGHTS: 40, ACTIVATIONS: 80, CACHE: 8}),
        Peak("three", {WEIGHTS: 40}),
    ]
    assert [peak.total for peak in memory.peaks] == [440, 128, 40]


@pytest.mark.parametrize(("size", "moved"), [(30, 30), (500, 80)])
def test_bytes_of_a_peak_that_were_taken_for_activations_can_be_claimed(size, moved):
    memory = MemoryTracker()
    memory.begin("one")
    with memory:
        x = torch.zeros(20)
    memory.note(CACHE, 16)
    memory.claim(CACHE, size)
    memory.close()
    (peak,) = memory.peaks
    assert peak.by_kind == {
        k: v for k, v in {ACTIVATIONS: 80 - moved, CACHE: 16 + moved}.items() if v
    }
    assert peak.total == 96
    del x


def test_kinds_are_told_in_one_order():
    memory = MemoryTracker()
    memory.begin("one")
    held = [torch.zeros(1) for _ in range(3)]
    for kind, tensor in zip((CACHE, ADAPTER, WEIGHTS), held, strict=True):
        memory.add(tensor, kind)
    memory.close()
    assert list(memory.peaks[0].by_kind) == [WEIGHTS, ADAPTER, CACHE]


def test_a_product_with_4_bits_unpacks_its_weight_for_a_moment():
    packed, state = F.quantize_4bit(torch.randn(32, 64), quant_type="nf4")
    rows = torch.randn(2, 64)
    memory = MemoryTracker()
    memory.add(packed, WEIGHTS)
    memory.begin("forward")
    with memory, torch.no_grad():
        out = matmul_4bit(rows, packed.t(), state)
    memory.close()
    (peak,) = memory.peaks
    unpacked = 32 * 64 * FLOAT
    assert peak.by_kind == {WEIGHTS: 32 * 64 // 2, ACTIVATIONS: out.numel() * FLOAT + unpacked}
