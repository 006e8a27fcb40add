"""Dropout's masks, cheap enough for a CPU: slices of one table of random numbers.

To draw a mask number by number takes a CPU longer than the product that the dropped input goes
into. So the numbers are drawn once, and each mask is a slice of them that begins at a random place:
nothing is copied, and nothing need be kept for the backward pass but the place.
"""

from __future__ import annotations

import functools

import torch
from torch import nn

_TABLE = 2**23
"""Numbers in the table; a mask of more than half as many is put together from several slices."""


def draw(rows: int, width: int, p: float, dtype: torch.dtype) -> torch.Tensor:
    """Return a mask of shape (rows, width): 0 with probability p, else 1 / (1 - p).

    The place is drawn from torch's generator of the CPU. Not to be written to: it is a view.
    """
    table = _table(p, dtype)
    at_once = max(1, _TABLE // 2 // width)
    pieces = [_slice(table, min(at_once, rows - done), width) for done in range(0, rows, at_once)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _slice(table: torch.Tensor, rows: int, width: int) -> torch.Tensor:
    size = rows * width
    if size > len(table):  # one row wider than the table
        return table.repeat(-(-size // len(table)))[:size].view(rows, width)
    start = int(torch.randint(len(table) - size + 1, (), device="cpu"))
    return table[start : start + size].view(rows, width)


@functools.lru_cache(maxsize=8)
def _table(p: float, dtype: torch.dtype) -> torch.Tensor:
    """Return the table for a probability: the same one in every process and every run."""
    generator = torch.Generator().manual_seed(0)
    kept = torch.empty(_TABLE, device="cpu").bernoulli_(1 - p, generator=generator)
    return kept.div_(1 - p).to(dtype)


class TableDropout(nn.Dropout):
    """torch's dropout, with masks of this module where its input is on a CPU."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.p or self.p >= 1 or input.device.type != "cpu":
            return super().forward(input)
        flat = input.reshape(-1, input.shape[-1])
        mask = draw(len(flat), flat.shape[1], self.p, input.dtype)
        return input * mask.view(input.shape)


def take_over(layer: nn.Module, name: str) -> None:
    """Give a PEFT layer's adapter of that name this module's dropout in the place of torch's."""
    dropouts: nn.ModuleDict = layer.lora_dropout  # type: ignore[assignment]
    if type(dropouts[name]) is nn.Dropout:
        dropouts[name] = TableDropout(dropouts[name].p)  # type: ignore[arg-type]
