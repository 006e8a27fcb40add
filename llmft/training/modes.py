"""Weights to be used that are others than the trained ones, and the switch between the two.

Schedule-free optimisers have such (Defazio et al. 2024, arXiv:2405.15682): their methods `train`
and `eval` change the parameters in place. The switch is not exact, so that the weights are put
back. Callbacks may give such too, as an average over the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


def switch_of(optimizer: torch.optim.Optimizer, to: str) -> Callable[[], Any] | None:
    """Return the optimiser's method `train` or `eval`; None where it has but one kind of weights"""
    both = [getattr(optimizer, name, None) for name in ("train", "eval")]
    switch: Callable[[], Any] | None = getattr(optimizer, to) if all(map(callable, both)) else None
    return switch


def to_training(optimizer: torch.optim.Optimizer) -> None:
    """Let the parameters be those that are trained."""
    if (switch := switch_of(optimizer, "train")) is not None:
        switch()


def to_use(optimizer: torch.optim.Optimizer) -> None:
    """Let the parameters be those that are used after training."""
    if (switch := switch_of(optimizer, "eval")) is not None:
        switch()


def put(parameters: Mapping[str, torch.nn.Parameter], weights: Mapping[str, torch.Tensor]) -> None:
    """Write weights into the parameters of their names, in the parameters' own type."""
    with torch.no_grad():
        for name, weight in weights.items():
            parameters[name].copy_(weight)


@contextmanager
def in_use(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    given: Mapping[str, torch.Tensor],
) -> Iterator[None]:
    """Let the parameters be those that are used, and afterwards what they were, to the bit.

    given: the weights of some that are used in their place, by name; {}: none.
    """
    switches = switch_of(optimizer, "eval") is not None
    held = {n: p.detach().clone() for n, p in parameters.items() if switches or n in given}
    to_use(optimizer)
    put(parameters, given)
    try:
        yield
    finally:
        to_training(optimizer)
        put(parameters, held)
