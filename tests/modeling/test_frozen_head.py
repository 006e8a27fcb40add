"""A frozen output layer's loss by pieces is that of the whole, in every type it multiplies in."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llmft.modeling import frozen_head

VOCABULARY = 700


def found(head, hidden, labels, at_once, autocast):
    given = hidden.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        nll_N = frozen_head.frozen_head_nll(head, given, labels, at_once)
    weights = torch.linspace(0.5, 2, len(nll_N))
    return nll_N.detach(), *torch.autograd.grad((nll_N * weights).sum(), given)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False), (torch.float64, True)],
)
def test_pieces_of_any_length_give_the_same_bits_and_those_of_plain_cross_entropy(
    dtype, autocast, bias, monkeypatch
):
    torch.manual_seed(0)
    head = torch.nn.Linear(16, VOCABULARY, bias=bias).to(dtype).requires_grad_(False)
    hidden, labels = torch.randn(50, 16, dtype=dtype), torch.randint(0, VOCABULARY, (50,))
    of_sizes = []
    for near in (2**18, 3 * VOCABULARY, 1):
        monkeypatch.setattr(frozen_head, "_NEAR", near)
        of_sizes.append(found(head, hidden, labels, 20, autocast))
    for of_size in of_sizes[1:]:
        assert all(map(torch.equal, of_sizes[0], of_size))
    nll_N, grad_ND = of_sizes[0]
    assert (nll_N.dtype, grad_ND.dtype) == (torch.float32, dtype)
    exact = hidden.double().requires_grad_()
    want_N = F.cross_entropy(head.double()(exact), labels, reduction="none")
    (want_ND,) = torch.autograd.grad((want_N * torch.linspace(0.5, 2, 50)).sum(), exact)
    half = (autocast and dtype != torch.float64) or dtype == torch.bfloat16
    for got, want in ((nll_N, want_N), (grad_ND, want_ND)):
        assert float((got - want.detach()).norm() / want.detach().norm()) < (1e-2 if half else 1e-6)


def test_a_weight_is_cast_once_for_all_pieces(monkeypatch):
    head = torch.nn.Linear(16, VOCABULARY, bias=False).requires_grad_(False)
    hidden, labels = torch.randn(50, 16), torch.zeros(50, dtype=torch.long)
    with torch.profiler.profile(record_shapes=True) as profile:
        found(head, hidden, labels, 10, True)
    shape = list(head.weight.shape)
    casts = [e for e in profile.events() if e.name == "aten::copy_" and e.input_shapes[0] == shape]
    assert len(casts) == 1
