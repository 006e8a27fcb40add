"""Means and variances of what several processes have a part of: sums of powers, added up."""

from __future__ import annotations

import torch


def moments(sums: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance from (count, sum, sum of squares), the variance's n - 1 in mind.

    What float64's rounding leaves of a difference counts as none: equal numbers have variance 0.
    """
    count, total, squares = sums.unbind()
    mean = total / count
    spread = squares / count - mean**2
    spread = torch.where(spread > 1e-13 * squares / count, spread, 0.0)
    return mean, spread * count / (count - 1).clamp(min=1)


def power_sums(x: torch.Tensor) -> torch.Tensor:
    """Return (count, sum, sum of squares) in float64, which add up over processes."""
    x = x.double()
    return torch.stack([x.new_full((), float(x.numel())), x.sum(), (x**2).sum()])


def whiten(x: torch.Tensor, sums: torch.Tensor, *, shift_mean: bool = True) -> torch.Tensor:
    """Return x with variance 1, and mean 0 or (shift_mean=False) its own.

    sums: the `power_sums` of all that is whitened together.
    """
    mean, variance = moments(sums)
    whitened = (x - mean) * torch.rsqrt(variance + 1e-8)
    return (whitened if shift_mean else whitened + mean).to(x.dtype)
