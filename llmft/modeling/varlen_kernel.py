"""One fused call for segments of many lengths, on GPUs that FlashAttention runs on."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from llmft.modeling.segments import Segments

HALF = (torch.bfloat16, torch.float16)
WIDEST_HEAD = 256


def takes(query: torch.Tensor, dropout: float) -> bool:
    """Return whether torch's variable-length kernel computes such queries' attention here."""
    if not query.is_cuda or fused_dtype(query) not in HALF or dropout:
        return False
    width = query.shape[-1]
    return width % 8 == 0 and width <= WIDEST_HEAD and _is_there(query.device.index)


@functools.cache
def _is_there(device: int | None) -> bool:
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0) and bool(_options())


@functools.cache
def _options() -> dict[str, Any]:
    """Return what makes torch's function causal, and take fewer keys' heads; {}: it is not there.

    It came with torch 2.10, and its arguments have changed since.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return {}
    names = inspect.signature(varlen_attn).parameters
    if "window_size" not in names:
        return {}
    return {"window_size": (-1, 0), **({"enable_gqa": True} if "enable_gqa" in names else {})}


def fused_dtype(query: torch.Tensor) -> torch.dtype:
    """Return the type in which fused attention computes: under autocast that of 16 bits.

    Queries are float32 there where the weights are: rotations make them so.
    """
    if torch.is_autocast_enabled(query.device.type) and query.dtype != torch.float64:
        return torch.get_autocast_dtype(query.device.type)
    return query.dtype


@dataclass(frozen=True, slots=True)
class LaidOut:
    """What variable-length kernels take: (T, H, D) each, boundaries (int32), the longest ones."""

    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    queries: torch.Tensor
    keys: torch.Tensor
    longest_query: int
    longest_key: int


def laid_out(tensors: tuple[torch.Tensor, ...], segments: Segments, learnt: int) -> LaidOut:
    """Return segments as kernels take them; see `attend`. What stands before one is copied to it.

    Tensors have the type that autocast gives fused attention.
    Boundaries are made once for all layers, and the host does not wait for them.
    """
    device = tensors[0].device
    dtype = fused_dtype(tensors[0])
    query, key, value = (tensor[0].transpose(0, 1).to(dtype) for tensor in tensors)
    if (places := segments.keys(device, learnt)) is not None:
        key, value = key.index_select(0, places), value.index_select(0, places)
    queries, keys = segments.boundaries(device, learnt)
    longest = segments.longest_own, learnt + segments.longest
    return LaidOut((query, key, value), queries, keys, *longest)


def attend(
    tensors: tuple[torch.Tensor, ...],
    segments: Segments,
    learnt: int,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """Return causal attention within each segment, as (1, T, H, D).

    tensors: queries (1, H, T, D), and keys and values (1, heads, learnt + T, D), of which the
        first `learnt` stand before every segment. window: how far back a query sees, itself
        counted; None: to its segment's start.
    """
    from torch.nn.attention.varlen import varlen_attn

    laid = laid_out(tensors, segments, learnt)
    options = dict(_options())
    if window is not None:
        options["window_size"] = (window - 1, 0)
    out: torch.Tensor = varlen_attn(
        *laid.qkv, laid.queries, laid.keys, laid.longest_query, laid.longest_key, scale=scale,
        **options,
    )  # type: ignore[assignment]  # fmt: skip
    return out.unsqueeze(0)
