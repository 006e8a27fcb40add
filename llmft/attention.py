"""Variable-length attention: rows laid end to end, no padding computed.

Registered with transformers under one name, so that every architecture which takes its attention
from the registry can use it. The boundaries travel as `cu_seq_lens_q`, FlashAttention's name, which
the models pass through.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

NAME = "llmft_varlen"


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
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Return causal attention within each segment, as (1, T, H, D), and no weights.

    cu_seq_lens_q: B + 1 boundaries of the segments along T, from 0 to T.
    """
    if cu_seq_lens_q is None:
        raise ValueError("variable-length attention needs cu_seq_lens_q")
    groups = module.num_key_value_groups if hasattr(module, "num_key_value_groups") else 1
    if groups > 1:
        key_1HTD = key_1HTD.repeat_interleave(groups, dim=1)
        value_1HTD = value_1HTD.repeat_interleave(groups, dim=1)
    bounds = cu_seq_lens_q.tolist()
    lengths = [end - start for start, end in zip(bounds, bounds[1:], strict=False)]
    longest = max(lengths)
    options: dict[str, Any] = {"scale": scaling, "dropout_p": dropout}
    if sliding_window is not None and longest > sliding_window:
        options["window"] = sliding_window
    if len(lengths) * longest**2 <= _PADDING_BUDGET * sum(n * n for n in lengths):
        out = _padded(query_1HTD, key_1HTD, value_1HTD, lengths, options)
    else:
        pieces = [t.split(lengths, dim=2) for t in (query_1HTD, key_1HTD, value_1HTD)]
        out = torch.cat([_causal(q, k, v, **options) for q, k, v in zip(*pieces, strict=True)], 2)
    return out.transpose(1, 2), None


# One fused call over padded segments beats a call a segment until this much work is wasted.
_PADDING_BUDGET = 2.0


def _padded(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    options: dict[str, Any],
) -> torch.Tensor:
    """Return attention of all segments in one call: right padding is never seen by causal rows."""
    if len(lengths) == 1:
        return _causal(query, key, value, **options)
    real_BL = torch.arange(max(lengths)).unsqueeze(0) < torch.tensor(lengths).unsqueeze(1)
    flat = real_BL.flatten().nonzero().squeeze(1).to(query.device)
    shape = (len(lengths), max(lengths))

    def unpack(packed_1HTD: torch.Tensor) -> torch.Tensor:
        _, heads, _, width = packed_1HTD.shape
        rows = packed_1HTD.new_zeros(shape[0] * shape[1], heads, width)
        rows = rows.index_copy(0, flat, packed_1HTD[0].transpose(0, 1))
        return rows.view(*shape, heads, width).transpose(1, 2)

    out_BHLD = _causal(unpack(query), unpack(key), unpack(value), **options)
    rows = out_BHLD.transpose(1, 2).flatten(0, 1).index_select(0, flat)
    return rows.transpose(0, 1).unsqueeze(0)


def _causal(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float | None,
    dropout_p: float,
    window: int | None = None,
) -> torch.Tensor:
    if window is None:
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, dropout_p=dropout_p, scale=scale
        )
    at = torch.arange(query.shape[2], device=query.device)
    distance = at.unsqueeze(1) - at.unsqueeze(0)
    seen = (distance >= 0) & (distance < window)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, dropout_p=dropout_p, scale=scale
    )
