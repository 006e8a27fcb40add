"""The mathematics of learning from preferences: pure functions of tensors, one value a pair.

Column 0 of a tensor that ends in 2 is the chosen answer, column 1 the rejected one. Log-likelihoods
are natural, float32 or float64, over the answers' tokens only.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def bradley_terry_loss(
    rewards_B2: torch.Tensor, margin_B: torch.Tensor | None = None, center: float = 0.0
) -> torch.Tensor:
    """Return -log sigma(r_chosen - r_rejected - margin) of each pair, shape (B,), in nats.

    Ouyang et al. 2022, eq. 1; the margin as in Touvron et al. 2023 (Llama 2), eq. 2.
    center: times (r_chosen + r_rejected)^2, which keeps rewards around 0 (Eisenstein et al. 2023).
    """
    gap_B = rewards_B2[:, 0] - rewards_B2[:, 1]
    if margin_B is not None:
        gap_B = gap_B - margin_B
    return -F.logsigmoid(gap_B) + center * rewards_B2.sum(1) ** 2


def kto_loss(
    ratio_B: torch.Tensor, label_B: torch.Tensor, kl: torch.Tensor | float, beta: float
) -> torch.Tensor:
    """Return 1 - v of each answer, shape (B,): Ethayarajh et al. 2024, eq. 8, unweighted.

    v is sigma(beta (r - z)) of a desirable answer and sigma(beta (z - r)) of an undesirable one.
    ratio_B: r, log(policy / reference) of each answer. label_B: true where it is desirable. kl: z,
    the reference point; with 0 it is the unpaired form of APO-zero (D'Oosterlinck et al. 2024).
    """
    sign_B = label_B.to(ratio_B.dtype) * 2 - 1
    return 1 - torch.sigmoid(beta * sign_B * (ratio_B - kl))


def shaped_rewards(logps_B2: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return (1 - p ** -alpha) / alpha of each answer; at alpha 0, log p (arXiv:2501.03884).

    logps_B2: log p; of an answer, or averaged over its tokens.
    """
    return logps_B2 if alpha == 0 else -torch.expm1(-alpha * logps_B2) / alpha


def cpo_loss(
    name: str,
    rewards_B2: torch.Tensor,
    beta: float,
    label_smoothing: float = 0.0,
    simpo_gamma: float = 0.0,
) -> torch.Tensor:
    """Return a loss of CPOTrainer for each pair, shape (B,), its likelihood term left out.

    name: sigmoid (Xu et al. 2024, the CPO loss), hinge, ipo, or simpo (Meng et al. 2024, eq. 6),
    whose margin is simpo_gamma. rewards_B2: `shaped_rewards`, without beta.
    """
    gap_B = rewards_B2[:, 0] - rewards_B2[:, 1]
    if name == "hinge":
        return torch.relu(1 - beta * gap_B)
    if name == "ipo":
        return (gap_B - 1 / (2 * beta)) ** 2
    scaled_B = beta * gap_B - (simpo_gamma if name == "simpo" else 0.0)
    e = label_smoothing
    return -(1 - e) * F.logsigmoid(scaled_B) - e * F.logsigmoid(-scaled_B)


def log1mexp(x: torch.Tensor) -> torch.Tensor:
    """Return log(1 - exp(x)) for x < 0, exact near 0 and far from it (Maechler 2012, eq. 7).

    x nearer to 0 than 1e-7, a likelihood of 1 in float32, counts as -1e-7.
    """
    x = x.clamp(max=-1e-7)
    near = x > -math.log(2)
    # The branch not taken must be finite too, or its gradient would be NaN.
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, x))),
    )


def log_odds_ratio(mean_logps_B2: torch.Tensor) -> torch.Tensor:
    """Return log(odds(chosen) / odds(rejected)) of each pair, shape (B,): Hong et al. 2024, eq. 4.

    mean_logps_B2: log-likelihoods averaged over each answer's tokens (their eq. 2).
    """
    log_odds_B2 = mean_logps_B2 - log1mexp(mean_logps_B2)
    return log_odds_B2[:, 0] - log_odds_B2[:, 1]


def orpo_loss(nll_B: torch.Tensor, mean_logps_B2: torch.Tensor, beta: float) -> torch.Tensor:
    """Return NLL + beta * -log sigma(log odds ratio) of each pair: Hong et al. 2024, eq. 6 and 7.

    beta: the paper's lambda, by TRL's name.
    """
    return nll_B - beta * F.logsigmoid(log_odds_ratio(mean_logps_B2))


def k3_divergence(logps_N: torch.Tensor, start_N: torch.Tensor) -> torch.Tensor:
    """Return exp(d) - d - 1 with d = start - now for each token: 0 where equal, else positive.

    On tokens drawn from the policy its mean is KL(policy || start) (Schulman 2020, k3); on a data
    set's tokens it is a penalty on every log-likelihood that moves away from the start's.
    """
    gap_N = start_N - logps_N
    return torch.expm1(gap_N) - gap_N
