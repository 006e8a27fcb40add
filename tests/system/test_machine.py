"""What is asked of torch for a training is asked of it for no longer."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
import torch.utils.deterministic as memory

from llmft.system.machine import full_determinism


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
