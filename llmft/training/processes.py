"""What the processes of one training add up: alone, a process finds everything as it is.

Adapters are small, so gradients are summed whole after an update's passes; nothing is asked of how
many passes each process takes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

Sums = dict[str, tuple[float, float]]


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def count() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if _several() else 1


def rank() -> int:
    """Return which of them this one is, from 0."""
    return dist.get_rank() if _several() else 0


def summed(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all processes."""
    if not _several():
        return tensor
    whole = tensor.detach().clone()
    dist.all_reduce(whole)
    return whole


def merged(sums: Mapping[str, tuple[float, float]]) -> Sums:
    """Return metrics as (sum, weight) over all processes; one may have none of them."""
    if not _several():
        return dict(sums)
    every: list[Sums] = [{} for _ in range(count())]
    dist.all_gather_object(every, dict(sums))
    whole: Sums = defaultdict(lambda: (0.0, 0.0))
    for one in every:
        for name, (value, weight) in one.items():
            before = whole[name]
            whole[name] = (before[0] + value, before[1] + weight)
    return dict(whole)


def sum_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Give every process the sum of all processes' gradients; one may have computed none."""
    if not _several():
        return
    by_kind: dict[torch.dtype, list[torch.Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        by_kind[parameter.grad.dtype].append(parameter.grad)
    for gradients in by_kind.values():
        whole = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(whole)
        pieces = torch.split(whole, [gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))


def start_alike(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Give every process the first one's weights."""
    if _several():
        for parameter in parameters:
            dist.broadcast(parameter.data, 0)
