"""Variable-length attention: rows laid end to end, no padding computed.

Registered with transformers under one name, so that every architecture which takes its attention
from the registry can use it. The boundaries travel as `cu_seq_lens_q`, FlashAttention's name, which
the models pass through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

NAME = "llmft_varlen"
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
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Return causal attention within each segment, as (1, T, H, D), and no weights.

    cu_seq_lens_q: B + 1 boundaries of the segments along T, from 0 to T. Keys beyond T (an
        adapter's, which it learns) come first, and every segment sees them.
    shared_prefix: (B, 2) start and length, along T, of what stands before a segment though it is
        laid elsewhere (a prompt that two answers share); length 0 where nothing does.
    """
    if unknown := sorted(k for k in others if others[k] is not None and k not in _KNOWN):
        raise ValueError(f"variable-length attention does not know {', '.join(unknown)}")
    if attention_mask is not None:
        raise ValueError("variable-length attention takes no mask of the model's own")
    if cu_seq_lens_q is None:
        raise ValueError("variable-length attention needs cu_seq_lens_q")
    groups = module.num_key_value_groups if hasattr(module, "num_key_value_groups") else 1
    if groups > 1:
        key_1HTD = key_1HTD.repeat_interleave(groups, dim=1)
        value_1HTD = value_1HTD.repeat_interleave(groups, dim=1)
    segments = _segments(cu_seq_lens_q, shared_prefix)
    longest = max(segment.length for segment in segments)
    options: dict[str, Any] = {"scale": scaling, "dropout_p": dropout}
    learnt = key_1HTD.shape[2] - query_1HTD.shape[2]
    if learnt:
        options["before"] = (key_1HTD[:, :, :learnt], value_1HTD[:, :, :learnt])
        key_1HTD, value_1HTD = key_1HTD[:, :, learnt:], value_1HTD[:, :, learnt:]
    if sliding_window is not None and learnt + longest > sliding_window:
        options["window"] = sliding_window
    tensors = (query_1HTD, key_1HTD, value_1HTD)
    work = sum(segment.own * segment.length for segment in segments)
    if len(segments) > 1 and len(segments) * longest**2 <= _PADDING_BUDGET * work:
        out = _padded(tensors, segments, longest, options)
    else:
        out = _one_by_one(tensors, segments, options)
    return out.transpose(1, 2), None


# One fused call over padded segments beats a call a segment until this much work is wasted.
_PADDING_BUDGET = 2.0


@dataclass(frozen=True, slots=True)
class _Segment:
    """A stretch of T, and the stretch that stands before it."""

    start: int
    end: int
    prefix_start: int = 0
    prefix: int = 0

    @property
    def own(self) -> int:
        return self.end - self.start

    @property
    def length(self) -> int:
        return self.prefix + self.own

    @property
    def places(self) -> list[int]:
        """Where along T the segment's tokens are, its prefix first."""
        before = range(self.prefix_start, self.prefix_start + self.prefix)
        return [*before, *range(self.start, self.end)]


def _segments(bounds: torch.Tensor, shared: torch.Tensor | None) -> list[_Segment]:
    ends: list[int] = bounds.tolist()
    before = shared.tolist() if shared is not None else [(0, 0)] * (len(ends) - 1)
    stretches = zip(ends, ends[1:], before, strict=False)
    return [_Segment(start, end, *prefix) for start, end, prefix in stretches]


def _one_by_one(
    tensors: tuple[torch.Tensor, ...], segments: list[_Segment], options: dict[str, Any]
) -> torch.Tensor:
    """Return the segments' attention, a call for each. What stands before one is attended only."""
    # Split, not sliced: a slice's gradient is as long as all segments together.
    lengths = [segment.own for segment in segments]
    queries, keys, values = (torch.split(t, lengths, 2) for t in tensors)
    number_at = {segment.start: number for number, segment in enumerate(segments)}
    out = []
    for segment, query, key, value in zip(segments, queries, keys, values, strict=True):
        if segment.prefix:
            there = number_at[segment.prefix_start]
            key, value = (
                torch.cat([pieces[there][:, :, : segment.prefix], own], 2)
                for pieces, own in ((keys, key), (values, value))
            )
        out.append(_causal(query, key, value, **options))
    return torch.cat(out, 2)


def _padded(
    tensors: tuple[torch.Tensor, ...],
    segments: list[_Segment],
    longest: int,
    options: dict[str, Any],
) -> torch.Tensor:
    """Return attention of all segments in one call: right padding is never seen by causal rows."""
    source = torch.zeros(len(segments), longest, dtype=torch.long)
    own = torch.zeros(len(segments), longest, dtype=torch.bool)
    for number, segment in enumerate(segments):
        source[number, : segment.length] = torch.tensor(segment.places)
        own[number, segment.prefix : segment.length] = True
    device = tensors[0].device
    source, kept = source.flatten().to(device), own.flatten().nonzero().squeeze(1).to(device)

    def unpack(packed_1HTD: torch.Tensor) -> torch.Tensor:
        _, heads, _, width = packed_1HTD.shape
        rows = packed_1HTD[0].index_select(1, source)
        return rows.view(heads, len(segments), longest, width).transpose(0, 1)

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
    if window is None and before is None and query.shape[2] == key.shape[2]:
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, dropout_p=dropout_p, scale=scale
        )
    if before is not None:
        keys, values = (t.expand(len(query), -1, -1, -1) for t in before)
        key, value = torch.cat([keys, key], 2), torch.cat([values, value], 2)
    at = torch.arange(key.shape[2], device=query.device)
    distance = at[-query.shape[2] :].unsqueeze(1) - at.unsqueeze(0)
    seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, dropout_p=dropout_p, scale=scale
    )
