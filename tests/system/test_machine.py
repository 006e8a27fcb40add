"""What is asked of torch for a training is asked of it for no longer."""

from __future__ import annotations

import random
from contextlib import suppress

import numpy
import pytest
import torch
import torch.utils.deterministic as memory

from llmft.system.machine import bfloat16_over_float32, full_determinism, seed_everything
from llmft.system.rng import isolated_rng


def state() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory


@pytest.mark.parametrize("wanted", [True, False])
def test_only_a_block_that_wants_it_is_deterministic(wanted, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # is put back
    before = state()
    assert before == (False, True)
    with suppress(InterruptedError), full_determinism(wanted):
        within = state()
        raise InterruptedError
    assert within == ((True, False) if wanted else before)
    assert state() == before


def test_the_rate_of_products_in_bfloat16_is_the_best_time_over_the_best(monkeypatch):
    clock = [0.0]
    takes = {torch.float32: [9.0, 3.0, 2.0, 4.0], torch.bfloat16: [0.1, 0.5, 0.8, 0.9]}

    def mm(rows, weight):
        assert rows.dtype == weight.dtype
        clock[0] += takes[rows.dtype].pop(0)

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr("llmft.system.machine.time.perf_counter", lambda: clock[0])
    assert bfloat16_over_float32.__wrapped__() == pytest.approx(4.0)


def test_the_last_seed_of_a_recipe_has_room_for_a_rank():
    """Each process trains by the recipe's seed and its rank, and numpy takes 32 bits."""
    with isolated_rng():
        drawn = []
        for seed in (2**32 - 1, 2**32, 2**32 + 1):
            seed_everything(seed)
            drawn.append((random.random(), numpy.random.rand(), float(torch.rand(()))))
    for one in zip(*drawn, strict=True):
        assert len(set(one)) == 3
