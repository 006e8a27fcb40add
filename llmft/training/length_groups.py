"""An epoch's order in which neighbours are of like length."""

from __future__ import annotations

from collections.abc import Sequence

import torch

PASSES_SORTED = 50
"""How many passes' rows are sorted together at most, as in transformers' LengthGroupedSampler."""


def grouped_order(lengths: Sequence[int], size: int, seed: int) -> list[int]:
    """Return all items once, in groups of `size` of like length, the groups in random order.

    Items are shuffled, those of 50 groups are sorted together, and cut into groups. A quarter of
    all is sorted at most, so that an epoch's neighbours are not those of the one before. What
    fills no group comes last, and is not sorted: items drop out of an epoch by chance alone.
    """
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = torch.randperm(len(lengths), generator=generator).tolist()
    whole = len(order) // size * size
    stretch = size * max(1, min(whole // (4 * size), PASSES_SORTED))
    groups: list[list[int]] = []
    for start in range(0, whole, stretch):
        some = sorted(order[start : min(start + stretch, whole)], key=lambda n: lengths[n])
        groups += [some[i : i + size] for i in range(0, len(some), size)]
    mixed = torch.randperm(len(groups), generator=generator).tolist()
    return [number for place in mixed for number in groups[place]] + order[whole:]
