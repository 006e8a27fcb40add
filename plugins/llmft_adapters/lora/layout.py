"""Where virtual tokens and a text's own tokens stand, in padded rows and in rows end to end."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Layout:
    """Rows of T tokens and P virtual ones, W columns in all: before each row's first real token.

    order: (B, W) where a column comes from: 0..P-1 the virtual tokens, P.. the text; None where
        virtual tokens simply stand in front. columns: (T,) where the text's tokens go (pads on the
        left excepted). mask: (B, W). positions: (B, W), None where the model's own count is right.
    bounds: boundaries of W, where rows are laid end to end; text_bounds, text_mask: those of T.
    pads_left: whether a row has pads before its first token.
    """

    columns: torch.Tensor
    order: torch.Tensor | None
    mask: torch.Tensor
    positions: torch.Tensor | None
    text_mask: torch.Tensor
    bounds: torch.Tensor | None = None
    text_bounds: torch.Tensor | None = None
    pads_left: bool = False

    @classmethod
    def of(cls, input_ids_BT: torch.Tensor, n_virtual: int, inputs: dict[str, Any]) -> Layout:
        """Return the layout of a model's inputs; takes mask, positions and boundaries out."""
        mask = inputs.pop("attention_mask", None)
        places = inputs.pop("position_ids", None)
        bounds = inputs.pop("cu_seq_lens_q", None)
        if mask is None:
            mask = torch.ones_like(input_ids_BT)
        if bounds is not None:
            return _end_to_end(mask, bounds, places, n_virtual)
        return _padded(mask, places, n_virtual)

    def laid(self, virtual_BPD: torch.Tensor, text_BTD: torch.Tensor) -> torch.Tensor:
        """Return both in their order, shape (B, W, D)."""
        both = torch.cat([virtual_BPD, text_BTD], dim=1)
        if self.order is None:
            return both
        if len(both) == 1:
            return both[:, self.order[0]]
        return both.gather(1, self.order.unsqueeze(-1).expand(-1, -1, both.shape[-1]))

    def kept(self, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
        """Return the columns of W that `logits_to_keep` means in the text."""
        if isinstance(logits_to_keep, torch.Tensor):
            return self.columns[logits_to_keep]
        return self.columns[-logits_to_keep:] if logits_to_keep else self.columns


def _padded(mask_BT: torch.Tensor, places: torch.Tensor | None, n: int) -> Layout:
    width = mask_BT.shape[1]
    device = mask_BT.device
    first_B1 = mask_BT.bool().int().argmax(dim=1, keepdim=True)
    columns = torch.arange(n, n + width, device=device)
    mask = torch.nn.functional.pad(mask_BT, (n, 0), value=1)
    pads_left = bool(first_B1.any())
    if not pads_left and places is None:
        return Layout(columns, None, mask, None, mask_BT)
    at_W = torch.arange(n + width, device=device).expand(len(mask), -1)
    order = torch.where(at_W < first_B1, at_W + n, at_W)
    order = torch.where((at_W >= first_B1) & (at_W < first_B1 + n), at_W - first_B1, order)
    mask = mask.gather(1, order)
    if places is None:
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    else:
        virtual = torch.arange(n, device=device).expand(len(mask), -1)
        positions = torch.cat([virtual, places.expand(len(mask), -1) + n], 1).gather(1, order)
    return Layout(columns, order, mask, positions, mask_BT, pads_left=pads_left)


def _end_to_end(
    mask_1T: torch.Tensor, bounds: torch.Tensor, places_1T: torch.Tensor | None, n: int
) -> Layout:
    device = mask_1T.device
    ends = bounds.tolist()
    virtual = torch.arange(n, device=device)
    order, positions, columns = [], [], []
    for number, (start, end) in enumerate(pairwise(ends)):
        text = torch.arange(start, end, device=device)
        columns.append(text + n * (number + 1))
        order += [virtual, text + n]
        own = text - start if places_1T is None else places_1T[0, start:end]
        positions += [virtual, own + n]
    moved = bounds + n * torch.arange(len(ends), device=bounds.device, dtype=bounds.dtype)
    laid = torch.cat(order).unsqueeze(0)
    return Layout(
        columns=torch.cat(columns),
        order=laid,
        mask=torch.ones_like(laid),
        positions=torch.cat(positions).unsqueeze(0),
        text_mask=mask_1T,
        bounds=moved,
        text_bounds=bounds,
    )
