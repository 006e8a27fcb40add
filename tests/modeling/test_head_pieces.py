"""Large pieces of logits on a GPU and in its plan, small ones on a CPU, and the same numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from llmft.api import Encoded
from llmft.modeling import forward, head_pieces
from llmft.modeling.head_pieces import planned_for_a_gpu, rows_at_once
from llmft.modeling.tiny_models import tiny_llama

CPU, GPU = (SimpleNamespace(device=SimpleNamespace(type=kind)) for kind in ("cpu", "cuda"))


@pytest.mark.parametrize(
    ("words", "cpu", "gpu"),
    [(128_256, 130, 4096), (262_144, 64, 2048), (2**30, 1, 1), (300, 55_924, 4096)],
)
def test_a_gpu_has_4096_rows_where_2_gib_of_logits_hold_them(words, cpu, gpu):
    asked = (words, forward.LOGITS_AT_ONCE, forward.ON_A_GPU)
    assert rows_at_once(CPU, *asked) == cpu
    assert rows_at_once(GPU, *asked) == gpu
    with planned_for_a_gpu():
        assert rows_at_once(CPU, *asked) == gpu
    assert rows_at_once(CPU, *asked) == cpu


def test_pieces_change_no_number(monkeypatch):
    rows = [Encoded(tuple(range(5, 25)), (-100,) * 5 + tuple(range(10, 25)), "row")]
    model = tiny_llama()
    model.lm_head.weight.requires_grad_(False)
    found = []
    for most in (2, 4096):
        monkeypatch.setattr(head_pieces, "ROWS_ON_A_GPU", most)
        model.zero_grad()
        with planned_for_a_gpu():
            loss = forward.label_nll(model, rows).nll_N.sum()
        loss.backward()
        found.append((float(loss), model.model.layers[0].mlp.up_proj.weight.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-4, atol=1e-7)
