"""Attention of 16 bits on a CPU: torch's own going forward, and nearer to float64 going back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llmft.modeling import attention, half_attention


def drawn(heads, groups, queries, keys, dtype):
    torch.manual_seed(0)
    sizes = ((heads, queries), (groups, keys), (groups, keys), (heads, queries))
    return [torch.randn(2, n, length, 16).to(dtype) for n, length in sizes]


def attended(function, tensors, grad, **options):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = function(*leaves, scale=0.3, **options)
    return out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("heads", "groups", "queries", "keys"), [(4, 4, 17, 17), (6, 2, 50, 50), (4, 4, 9, 20)]
)
def test_it_has_torch_s_bits_and_gradients_nearer_to_float64(heads, groups, queries, keys, dtype):
    *tensors, grad = drawn(heads, groups, queries, keys, dtype)
    options = {"is_causal": True, "enable_gqa": heads != groups}
    if queries != keys:
        at = torch.arange(keys)
        options = {"attn_mask": at[-queries:, None] >= at}
    own = attended(half_attention.attend, tensors, grad, **options)
    theirs = attended(F.scaled_dot_product_attention, tensors, grad, **options)
    wide = [tensor.double() for tensor in tensors]
    exact = attended(F.scaled_dot_product_attention, wide, grad, **options)
    assert torch.equal(own[0], theirs[0])
    for mine, torchs, want in zip(own[1:], theirs[1:], exact[1:], strict=True):
        assert mine.dtype == dtype
        assert (mine - want).norm() < (torchs - want).norm()


def test_it_is_what_training_takes_and_nothing_else(monkeypatch):
    taken = []
    whole = half_attention.attend
    monkeypatch.setattr(
        half_attention, "attend", lambda *given, **more: (taken.append(1), whole(*given, **more))[1]
    )

    def asked(dtype=torch.bfloat16, autocast=False, grad=True, dropout=0.0, width=16):
        query, key, value, _ = drawn(2, 2, 5, 5, dtype)
        taken.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.set_grad_enabled(grad):
            out = attention._causal(
                query.requires_grad_(), key, value[..., :width], scale=None, dropout_p=dropout
            )
        assert out.dtype == (torch.bfloat16 if autocast else dtype)
        return bool(taken)

    assert asked()
    assert asked(torch.float32, autocast=True)
    assert not asked(torch.float32)
    assert not asked(grad=False)
    assert not asked(dropout=0.5)
    assert not asked(width=8)
    assert half_attention.is_there()
