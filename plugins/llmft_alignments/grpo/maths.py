"""The mathematics of group-relative policy optimisation: pure functions of tensors.

N are the generated tokens of all answers end to end; row_N is the answer (0..B-1) of each. Answers
to one prompt, a group of G, stand together. Log-likelihoods are natural, float32 or float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from llmft_alignments.online.statistics import moments, power_sums

Sum = Callable[[torch.Tensor], torch.Tensor]
SMALL = 1e-4
"""Added to a standard deviation that is divided by, as TRL does."""


def group_moments(rewards_BX: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and the standard deviation (n - 1) of each answer's group, shape (B, ...)."""
    grouped = rewards_BX.view(len(rewards_BX) // size, size, *rewards_BX.shape[1:])
    mean, std = grouped.mean(1), grouped.std(1)
    return mean.repeat_interleave(size, 0), std.repeat_interleave(size, 0)


def without_variance(rewards_B: torch.Tensor, size: int) -> torch.Tensor:
    """Return which groups have the same reward for every answer, shape (B / G,), bool."""
    std_B = group_moments(rewards_B.double(), size)[1]
    return torch.isclose(std_B[::size], std_B.new_zeros(()))


def group_advantages(
    rewards_B: torch.Tensor, size: int, scale: str, all_reduce: Sum
) -> torch.Tensor:
    """Return the advantage of each answer over its group's mean, shape (B,), float32.

    Shao et al. 2024, section 4.1.2. scale: by what it is divided: the standard deviation of the
    'group', or of the whole 'batch' (Liu et al. 2025, "Part I: tricks or traps?"), or 'none' (Liu
    et al. 2025, Dr. GRPO). all_reduce: a sum over processes.
    """
    rewards_B = rewards_B.double()
    mean_B, std_B = group_moments(rewards_B, size)
    gap_B = rewards_B - mean_B
    if scale == "batch":
        std_B = moments(all_reduce(power_sums(rewards_B)))[1].sqrt()
    return (gap_B if scale == "none" else gap_B / (std_B + SMALL)).float()


def decoupled_advantages(
    scores_BR: torch.Tensor, weights_R: torch.Tensor, size: int, all_reduce: Sum
) -> torch.Tensor:
    """Return advantages of rewards that are each normalised in the group first, shape (B,).

    Liu et al. 2026, GDPO; their weighted sum is then normalised over the whole step.
    """
    scores_BR = scores_BR.double()
    mean_BR, std_BR = group_moments(scores_BR, size)
    sum_B = ((scores_BR - mean_BR) / (std_BR + SMALL) * weights_R).sum(1)
    mean, variance = moments(all_reduce(power_sums(sum_B)))
    return ((sum_B - mean) / (variance.sqrt() + SMALL)).float()


def leave_one_out(rewards_B: torch.Tensor, size: int) -> torch.Tensor:
    """Return each answer's reward less the mean of the others in its group, shape (B,), float32.

    Ahmadian et al. 2024, section 3.2 (RLOO).
    """
    grouped = rewards_B.double().view(len(rewards_B) // size, size)
    others = (grouped.sum(1, keepdim=True) - grouped) / (size - 1)
    return (grouped - others).flatten().float()


def per_answer(x_N: torch.Tensor, row_N: torch.Tensor, answers: int) -> torch.Tensor:
    """Return the sum of each answer's tokens, shape (B,)."""
    return x_N.new_zeros(answers).index_add(0, row_N, x_N)


def sequence_log_ratio(
    log_ratio_N: torch.Tensor, row_N: torch.Tensor, answers: int
) -> torch.Tensor:
    """Return the mean log-ratio of each token's answer (N,): Zheng et al. 2025, GSPO, eq. 7."""
    counts_B = torch.bincount(row_N, minlength=answers).clamp(min=1)
    return (per_answer(log_ratio_N, row_N, answers) / counts_B)[row_N]


def clipped_loss(
    ratio: torch.Tensor,
    advantages: torch.Tensor,
    low: float,
    high: float,
    delta: float | None = None,
) -> torch.Tensor:
    """Return the clipped surrogate's loss of each token or answer; all shapes are the same.

    Schulman et al. 2017, eq. 7, its sign turned; two ranges as in DAPO (Yu et al. 2025, eq. 10).
    delta: an upper bound on the ratio of the side that is not clipped (INTELLECT-2, section 3.4).
    """
    near = ratio.clamp(1 - low, 1 + high)
    bounded = ratio if delta is None else ratio.clamp(max=delta)
    return -torch.minimum(bounded * advantages, near * advantages)


def cispo_loss(
    ratio_N: torch.Tensor, logps_N: torch.Tensor, advantages_N: torch.Tensor, high: float
) -> torch.Tensor:
    """Return CISPO's loss of each token (N,): MiniMax-M1 (2025), eq. 4; `high` caps the ratio."""
    return -ratio_N.clamp(max=high).detach() * advantages_N * logps_N


def sapo_loss(
    ratio_N: torch.Tensor, advantages_N: torch.Tensor, positive: float, negative: float
) -> torch.Tensor:
    """Return SAPO's loss of each token (N,): Gao et al. 2025, its soft gate in place of clipping.

    positive, negative: the gate's temperature where the advantage is above 0, and elsewhere.
    """
    heat_N = torch.where(advantages_N > 0, positive, negative)
    return -torch.sigmoid(heat_N * (ratio_N - 1)) * 4 / heat_N * advantages_N


def clipped_away(
    ratio: torch.Tensor, advantages: torch.Tensor, low: float, high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where a ratio lies below the range, or above it, and its gradient is cut; bool."""
    return (ratio < 1 - low) & (advantages < 0), (ratio > 1 + high) & (advantages > 0)
