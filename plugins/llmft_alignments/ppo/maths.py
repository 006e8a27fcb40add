"""The mathematics of proximal policy optimisation: pure functions of tensors, one value a token.

N are the generated tokens of all answers end to end; row_N is the answer (0..B-1) of each, and an
answer's tokens stand together, in order. Log-likelihoods are natural, float32 or float64.
"""

from __future__ import annotations

import torch

from llmft_alignments.online.statistics import moments
from llmft_alignments.preference_maths import k3_divergence


def kl_estimates(logps_N: torch.Tensor, reference_N: torch.Tensor, name: str) -> torch.Tensor:
    """Return an estimate of KL(policy || reference) at each token drawn from the policy (N,), nats.

    name: 'k1', unbiased, or 'k3', unbiased too, never negative, and of less variance (Schulman
    2020, "Approximating KL divergence").
    """
    return -(reference_N - logps_N) if name == "k1" else k3_divergence(logps_N, reference_N)


def token_rewards(
    scores_B: torch.Tensor, kl_N: torch.Tensor, row_N: torch.Tensor, kl_coef: float
) -> torch.Tensor:
    """Return each token's reward (N,): the penalty, and an answer's score at its last token.

    Ziegler et al. 2019, eq. 2, taken apart by token.
    """
    rewards_N = -kl_coef * kl_N
    last_B = last_tokens(row_N)
    return rewards_N.index_add(0, last_B, scores_B.to(rewards_N))


def last_tokens(row_N: torch.Tensor) -> torch.Tensor:
    """Return the place along N of each answer's last token (B,)."""
    last_N = torch.ones_like(row_N, dtype=torch.bool)
    last_N[:-1] = row_N[1:] != row_N[:-1]
    return last_N.nonzero().squeeze(1)


def gae(
    rewards_N: torch.Tensor,
    values_N: torch.Tensor,
    row_N: torch.Tensor,
    gamma: float,
    lam: float,
) -> torch.Tensor:
    """Return the generalised advantage estimate of each token (N,): Schulman et al. 2016, eq. 16.

    values_N: of the state before each token. After an answer's last token comes nothing: value 0.
    """
    if not len(row_N):  # a process of several may have no answer in a step
        return torch.zeros_like(rewards_N)
    # A step back in time is a few numbers: a GPU would only be waited for.
    device, dtype = rewards_N.device, rewards_N.dtype
    rewards_N, values_N, row_N = rewards_N.cpu(), values_N.cpu(), row_N.cpu()
    advantages_N = torch.zeros_like(rewards_N)
    ends_B = last_tokens(row_N)
    counts_B = torch.bincount(row_N, minlength=len(ends_B))
    # Answers side by side, aligned at their ends, so that one sweep from the back does all.
    next_value_B = values_N.new_zeros(len(ends_B))
    running_B = rewards_N.new_zeros(len(ends_B))
    for back in range(int(counts_B.max())):
        inside_B = counts_B > back
        at = (ends_B - back)[inside_B]
        delta = rewards_N[at] + gamma * next_value_B[inside_B] - values_N[at]
        running = delta + gamma * lam * running_B[inside_B]
        advantages_N[at] = running
        running_B = running_B.index_put((inside_B,), running)
        next_value_B = next_value_B.index_put((inside_B,), values_N[at])
    return advantages_N.to(device, dtype)


def policy_loss(
    logps_N: torch.Tensor, old_logps_N: torch.Tensor, advantages_N: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the clipped surrogate's loss (N,) and where the clipped side was taken (N,), bool.

    Schulman et al. 2017, eq. 7, its sign turned.
    """
    ratio_N = torch.exp(logps_N - old_logps_N)
    plain_N = -advantages_N * ratio_N
    clipped_N = -advantages_N * ratio_N.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(plain_N, clipped_N), clipped_N > plain_N


def value_loss(
    values_N: torch.Tensor,
    old_values_N: torch.Tensor,
    returns_N: torch.Tensor,
    cliprange_value: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return half the squared error of the values (N,) and where the clipped side was taken (N,).

    Values may move by `cliprange_value` at most, as OpenAI's baselines have it.
    """
    # Not as old + clamped difference, which rounds: a value that has not moved would count as cut.
    near_N = values_N.clamp(old_values_N - cliprange_value, old_values_N + cliprange_value)
    plain_N, clipped_N = (values_N - returns_N) ** 2, (near_N - returns_N) ** 2
    return 0.5 * torch.maximum(plain_N, clipped_N), clipped_N > plain_N


def approx_kl(logps_N: torch.Tensor, old_logps_N: torch.Tensor) -> torch.Tensor:
    """Return how far the policy is from the one that drew the tokens (N,), by k3, in nats."""
    return k3_divergence(old_logps_N, logps_N)


def adapted_kl_coef(kl_coef: float, kl: float, target: float, rollouts: int, horizon: int) -> float:
    """Return the next coefficient of the adaptive controller: Ziegler et al. 2019, section 2.2.

    A step of more episodes than the horizon moves it by a fifth too, and never below 0.
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return kl_coef * (1.0 + error * min(rollouts / horizon, 1.0))


def explained_variance(residual_sums: torch.Tensor, return_sums: torch.Tensor) -> float:
    """Return 1 - Var(returns - values) / Var(returns), or 0 where the returns are all the same.

    Both arguments are `power_sums`.
    """
    spread = float(moments(return_sums)[1])
    if spread <= 0:
        return 0.0
    return 1.0 - float(moments(residual_sums)[1]) / spread
