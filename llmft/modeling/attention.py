"""Variable-length attention: rows laid end to end, no padding computed.

Registered with transformers under one name, so that every architecture which takes its attention
from the registry can use it. The boundaries travel as `cu_seq_lens_q`, FlashAttention's name, which
the models pass through.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from llmft.modeling import flash_attention, half_attention, varlen_kernel
from llmft.modeling.segments import Segments

NAME = "llmft_varlen"
NAMES = {"auto": NAME, "flash_attention_2": f"{NAME}_fa2", "flash_attention_3": f"{NAME}_fa3"}
"""What each of a recipe's names is called, by which padding-free passes attend. None holds "flash",
which transformers would read as its own integration."""
DENSE = "llmft_dense_attention"
"""Where a base model keeps the name of the attention code that it has for padded batches."""
_KNOWN = {"is_causal", "position_ids", "use_cache", "output_attentions", "output_hidden_states",
          "cu_seq_lens_k", "max_length_q", "max_length_k", "cache_position", "return_dict",
          "seq_idx", "logits_to_keep", "output_router_logits", "num_items_in_batch"}  # fmt: skip
"""What models hand on that changes nothing here."""


def register() -> None:
    """Make the attention known to transformers; to call it again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, varlen_attention)
    for kernel in flash_attention.MODULES:
        by_name = functools.partial(varlen_attention, kernel=kernel)
        AttentionInterface.register(NAMES[kernel], by_name)
    _in_groups_on_cpu()  # now: a plan's tensors without numbers could not be asked


def padding_free(model: Any) -> bool:
    """Return whether a model attends over rows that are laid end to end, and so keeps them apart.

    model: one with a `config` of transformers, such as an adapter's wrapper.
    """
    return getattr(model.config, "_attn_implementation", None) in NAMES.values()


def supports(model_class: Any, config: Any) -> bool:
    """Return whether an architecture's numbers stay the same under variable-length attention."""
    takes_any = bool(getattr(model_class, "_supports_attention_backend", False))
    # A cap on the logits, or biases by distance, are not in torch's fused attention.
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return takes_any and not capped and not getattr(config, "alibi", False)


def varlen_attention(
    module: Any,
    query_1HTD: torch.Tensor,
    key_1HTD: torch.Tensor,
    value_1HTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor | None = None,
    shared_prefix: torch.Tensor | None = None,
    sliding_window: int | None = None,
    kernel: str = "",
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Return causal attention within each segment, as (1, T, H, D), and no weights.

    cu_seq_lens_q: B + 1 boundaries of the segments along T, from 0 to T. Keys beyond T (an
        adapter's, which it learns) come first, and every segment sees them. Best left on the CPU:
        it is read there, once for all layers that are given the same tensor.
    shared_prefix: (B, 2) start and length, along T, of what stands before a segment though it is
        laid elsewhere (a prompt that two answers share); length 0 where nothing does.
    kernel: the package that computes it, by a recipe's name; '': torch's own code.
    """
    if unknown := sorted(k for k in others if others[k] is not None and k not in _KNOWN):
        raise ValueError(f"variable-length attention does not know {', '.join(unknown)}")
    if attention_mask is not None:
        raise ValueError("variable-length attention takes no mask of the model's own")
    if cu_seq_lens_q is None:
        raise ValueError("variable-length attention needs cu_seq_lens_q")
    segments = Segments.of(cu_seq_lens_q, shared_prefix)
    learnt = key_1HTD.shape[2] - query_1HTD.shape[2]
    window = sliding_window
    if window is not None and learnt + segments.longest <= window:
        window = None
    tensors = (query_1HTD, key_1HTD, value_1HTD)
    if kernel and flash_attention.takes(query_1HTD):
        out = flash_attention.attend(kernel, tensors, segments, learnt, scaling, window, dropout)
        return out, None
    if not segments.alike and varlen_kernel.takes(query_1HTD, dropout):
        return varlen_kernel.attend(tensors, segments, learnt, scaling, window), None
    options: dict[str, Any] = {"scale": scaling, "dropout_p": dropout, "window": window}
    if learnt:
        options["before"] = (key_1HTD[:, :, :learnt], value_1HTD[:, :, :learnt])
        tensors = (query_1HTD, key_1HTD[:, :, learnt:], value_1HTD[:, :, learnt:])
    if segments.alike:
        out = _side_by_side(tensors, segments, options)
    elif len(segments.all) * segments.longest**2 <= _PADDING_BUDGET * segments.work:
        out = _padded(tensors, segments, options)
    else:
        out = _one_by_one(tensors, segments, options)
    return out.transpose(1, 2), None


# One fused call over padded segments beats a call a segment until this much work is wasted.
_PADDING_BUDGET = 2.0


def _side_by_side(
    tensors: tuple[torch.Tensor, ...], segments: Segments, options: dict[str, Any]
) -> torch.Tensor:
    """Return attention of segments of one length in one call, nothing copied."""
    rows, length = len(segments.all), segments.longest

    def view(packed_1HTD: torch.Tensor) -> torch.Tensor:
        _, heads, _, width = packed_1HTD.shape
        return packed_1HTD.view(heads, rows, length, width).transpose(0, 1)

    out_BHLD = _causal(*(view(tensor) for tensor in tensors), **options)
    return out_BHLD.transpose(0, 1).flatten(1, 2).unsqueeze(0)


def _one_by_one(
    tensors: tuple[torch.Tensor, ...], segments: Segments, options: dict[str, Any]
) -> torch.Tensor:
    """Return the segments' attention, a call for each. What stands before one is attended only."""
    # Split, not sliced: a slice's gradient is as long as all segments together.
    lengths = [segment.own for segment in segments.all]
    queries, keys, values = (torch.split(t, lengths, 2) for t in tensors)
    number_at = {segment.start: number for number, segment in enumerate(segments.all)}
    out = []
    for segment, query, key, value in zip(segments.all, queries, keys, values, strict=True):
        if segment.prefix:
            there = number_at[segment.prefix_start]
            key, value = (
                torch.cat([pieces[there][:, :, : segment.prefix], own], 2)
                for pieces, own in ((keys, key), (values, value))
            )
        out.append(_causal(query, key, value, **options))
    return torch.cat(out, 2)


def _padded(
    tensors: tuple[torch.Tensor, ...], segments: Segments, options: dict[str, Any]
) -> torch.Tensor:
    """Return attention of all segments in one call: right padding is never seen by causal rows."""
    source, kept = segments.padding(tensors[0].device)

    def unpack(packed_1HTD: torch.Tensor) -> torch.Tensor:
        _, heads, _, width = packed_1HTD.shape
        rows = packed_1HTD[0].index_select(1, source)
        return rows.view(heads, len(segments.all), segments.longest, width).transpose(0, 1)

    out_BHLD = _causal(*(unpack(tensor) for tensor in tensors), **options)
    return out_BHLD.transpose(0, 1).flatten(1, 2).index_select(1, kept).unsqueeze(0)


def _causal(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float | None,
    dropout_p: float,
    window: int | None = None,
    before: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    if before is not None:
        keys, values = (t.expand(len(query), -1, -1, -1) for t in before)
        key, value = torch.cat([keys, key], 2), torch.cat([values, value], 2)
    options: dict[str, Any] = {"dropout_p": dropout_p, "scale": scale}
    if (groups := query.shape[1] // key.shape[1]) > 1:
        plain = window is None and query.shape[2] == key.shape[2]
        if plain and _in_groups(query, dropout_p):
            options["enable_gqa"] = True
        else:
            key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    if window is None and query.shape[2] == key.shape[2]:
        return _fused(query, key, value, is_causal=True, **options)
    at = torch.arange(key.shape[2], device=query.device)
    distance = at[-query.shape[2] :].unsqueeze(1) - at.unsqueeze(0)
    seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    return _fused(query, key, value, attn_mask=seen, **options)


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, dropout_p: float, **options: Any
) -> torch.Tensor:
    if half_attention.takes(query, key, value, dropout=dropout_p):
        return half_attention.attend(query, key, value, **options)
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p, **options)


def _in_groups(query: torch.Tensor, dropout: float) -> bool:
    """Return whether a fused kernel takes keys of fewer heads as they are, with no copy for each.

    Elsewhere torch would fall back to steps that keep every weight.
    """
    if query.is_cuda:
        return query.dtype in (torch.bfloat16, torch.float16)
    return query.device.type == "cpu" and not dropout and _in_groups_on_cpu()


@functools.cache
def _in_groups_on_cpu() -> bool:
    query = torch.empty(1, 2, 2, 8, device="cpu")
    key = query[:, :1]
    chosen = torch._fused_sdp_choice(query, key, key, is_causal=True, enable_gqa=True)
    return bool(chosen == SDPBackend.FLASH_ATTENTION.value)
