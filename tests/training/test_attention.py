"""Attention over rows end to end: each way of computing it gives what a row alone gives."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from llmft.modeling import attention, varlen_kernel
from llmft.modeling.segments import Segments

HEADS, FEW, WIDTH = 4, 2, 8
BOUNDS = (0, 5, 12, 13, 20)
SHARED = ((0, 0), (0, 3), (0, 5), (5, 4))


def by_hand(q: Any, k: Any, v: Any, learnt: int, shared: Any, window: int | None) -> torch.Tensor:
    """Attention of each segment alone, a token at a time, as (1, T, H, D)."""
    k, v = (t.repeat_interleave(HEADS // FEW, dim=1) for t in (k, v))
    rows = []
    for (start, end), (at, n) in zip(itertools.pairwise(BOUNDS), shared, strict=True):
        own = [*range(learnt), *range(learnt + at, learnt + at + n)]
        for t in range(start, end):
            own.append(learnt + t)
            seen = own[-window:] if window else own
            weights = (q[0, :, t : t + 1] @ k[0][:, seen].mT * WIDTH**-0.5).softmax(-1)
            rows.append((weights @ v[0][:, seen]).squeeze(1))
    return torch.stack(rows).unsqueeze(0)


def kernel(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, **of: Any) -> Any:
    """What torch's kernel does on a GPU: causal to the right end of each segment's keys."""
    out, back = [], of["window_size"][0]
    for i in range(len(cu_q) - 1):
        query, key, value = (
            t[cu[i] : cu[i + 1]].transpose(0, 1) for t, cu in ((q, cu_q), (k, cu_k), (v, cu_k))
        )
        assert query.shape[1] <= max_q
        assert key.shape[1] <= max_k
        distance = torch.arange(key.shape[1])[-query.shape[1] :, None] - torch.arange(key.shape[1])
        seen = (distance >= 0) & ((distance <= back) if back >= 0 else True)
        out.append(F.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, scale=of["scale"], enable_gqa=True
        ).transpose(0, 1))  # fmt: skip
    return torch.cat(out)


@pytest.mark.parametrize("way", ["padded", "one by one", "kernel"])
@pytest.mark.parametrize(
    ("learnt", "shared", "window"),
    [(0, None, None), (3, None, None), (0, SHARED, None), (0, None, 3), (2, SHARED, 4)],
)
def test_each_way_gives_what_a_row_alone_gives(
    way: str, learnt: int, shared: Any, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "kernel":
        monkeypatch.setattr(varlen_kernel, "takes", lambda *_: True)
        monkeypatch.setattr(varlen_kernel, "_options", lambda: {"window_size": (-1, 0)})
        varlen = pytest.importorskip("torch.nn.attention.varlen")
        monkeypatch.setattr(varlen, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "_PADDING_BUDGET", 1e9 if way == "padded" else 0.0)
    torch.manual_seed(0)
    total = BOUNDS[-1]
    q, k, v = (
        torch.randn(1, heads, t, WIDTH, dtype=torch.float64)
        for heads, t in ((HEADS, total), (FEW, learnt + total), (FEW, learnt + total))
    )
    given = {"cu_seq_lens_q": torch.tensor(BOUNDS), "sliding_window": window,
             "shared_prefix": None if shared is None else torch.tensor(shared)}  # fmt: skip
    out, _ = attention.varlen_attention(None, q, k, v, None, WIDTH**-0.5, **given)
    torch.testing.assert_close(out, by_hand(q, k, v, learnt, shared or ((0, 0),) * 4, window))


@pytest.mark.parametrize("in_groups", [True, False])
def test_keys_of_fewer_heads_are_not_copied_where_a_kernel_takes_them(
    in_groups: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_in_groups_on_cpu", lambda: in_groups)
    plain, given = F.scaled_dot_product_attention, []
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *of, **how: given.append(of) or plain(*of, **how)
    )
    torch.manual_seed(0)
    tensors = [
        torch.randn(1, heads, BOUNDS[-1], WIDTH, dtype=torch.float64, requires_grad=True)
        for heads in (HEADS, FEW, FEW)
    ]
    weights = torch.randn(1, BOUNDS[-1], HEADS, WIDTH, dtype=torch.float64)
    found = []
    for way in (
        lambda q, k, v: attention.varlen_attention(
            None, q, k, v, None, WIDTH**-0.5, cu_seq_lens_q=torch.tensor(BOUNDS)
        )[0],
        lambda q, k, v: by_hand(q, k, v, 0, ((0, 0),) * 4, None),
    ):
        out = way(*tensors)
        found.append((out, *torch.autograd.grad((out * weights).sum(), tensors)))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert {key.shape[1] for _, key, _ in given} == {FEW if in_groups else HEADS}


@pytest.mark.parametrize("window", [None, 3])
def test_rows_of_one_length_are_laid_side_by_side(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_padded", None)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, 12, WIDTH) for _ in range(3))
    bounds = torch.tensor([0, 4, 8, 12])
    out, _ = attention.varlen_attention(
        None, q, k, v, None, cu_seq_lens_q=bounds, sliding_window=window
    )
    for start in (0, 4, 8):
        own = [t[:, :, start : start + 4] for t in (q, k, v)]
        alone, _ = attention.varlen_attention(
            None, *own, None, cu_seq_lens_q=torch.tensor([0, 4]), sliding_window=window
        )
        torch.testing.assert_close(out[:, start : start + 4], alone)


def test_boundaries_are_read_once_for_all_layers() -> None:
    bounds = torch.tensor(BOUNDS)
    first = Segments.of(bounds, None)
    assert Segments.of(bounds, None) is first
    cpu = torch.device("cpu")
    assert first.padding(cpu) is first.padding(cpu)
    assert Segments.of(torch.tensor(BOUNDS), None) is not first


def test_under_autocast_queries_of_float32_go_to_the_kernel_in_16_bits() -> None:
    """Rotary positions are float32's there; the kernel would take neither that, nor two types."""
    q, k = (torch.randn(1, heads, BOUNDS[-1], WIDTH) for heads in (HEADS, FEW))
    segments = Segments.of(torch.tensor(BOUNDS), None)

    def kinds() -> set[torch.dtype]:
        return {t.dtype for t in varlen_kernel.laid_out((q, k, k.bfloat16()), segments, 0).qkv}

    on_a_gpu: Any = SimpleNamespace(
        is_cuda=True, dtype=torch.float32, shape=q.shape, device=torch.device("cpu", 0)
    )
    assert varlen_kernel.fused_dtype(on_a_gpu) == torch.float32
    assert not varlen_kernel.takes(on_a_gpu, 0.0)
    with torch.autocast("cpu", torch.bfloat16), pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen_kernel, "_is_there", lambda device: True)
        assert varlen_kernel.takes(on_a_gpu, 0.0)
        assert not varlen_kernel.takes(on_a_gpu, 0.1)
        assert kinds() == {torch.bfloat16}
    q, k = q.double(), k.double()
    with torch.autocast("cpu", torch.bfloat16):
        assert varlen_kernel.fused_dtype(q) == torch.float64
