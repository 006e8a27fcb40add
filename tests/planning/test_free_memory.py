"""What a GPU here has room for: its free memory, and not what other programs hold."""

from __future__ import annotations

import pytest
import torch

from llmft.cli.commands.plan import Verdict, _fits
from llmft.planning.fitting import CUDA_CONTEXT, GIB, found_memory
from llmft.planning.planner import plan_recipe


@pytest.mark.parametrize(
    ("free", "reserved", "said"),
    [(23.9, CUDA_CONTEXT, "the GPU's own context"),
     (10, 14 * GIB, "its context and what other programs hold")],
)  # fmt: skip
def test_what_other_programs_hold_is_no_room(free, reserved, said, monkeypatch, recipe, loaded):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(free * GIB), 24 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    memory = found_memory()
    monkeypatch.undo()
    assert (memory.name, memory.total, memory.reserved) == ("a card", 24 * GIB, reserved)
    assert memory.room == 24 * GIB - reserved
    verdict = Verdict(plan_recipe(loaded(recipe), in_ram=False), memory, [])
    assert f"for {said})" in _fits(verdict)
