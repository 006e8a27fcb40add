"""Optimisers that train other weights than those to be used, and switch between the two.

Schedule-free ones do (Defazio et al. 2024, arXiv:2405.15682): their methods `train` and `eval`
change the parameters in place. The switch is not exact, so that the weights are put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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


@contextmanager
def in_use(
    optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter]
) -> Iterator[None]:
    """Let the parameters be those that are used, and afterwards what they were, to the bit."""
    if switch_of(optimizer, "eval") is None:
        yield
        return
    held = [parameter.detach().clone() for parameter in parameters]
    to_use(optimizer)
    try:
        yield
    finally:
        to_training(optimizer)
        with torch.no_grad():
            for parameter, value in zip(parameters, held, strict=True):
                parameter.copy_(value)
