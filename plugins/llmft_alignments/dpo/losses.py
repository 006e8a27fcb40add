"""DPO and its family: losses of a pair's log-likelihoods against a reference, by TRL's names.

Pure functions of tensors, one value a pair; column 0 is the chosen answer, column 1 the rejected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Summed log-likelihoods of a batch of pairs, (B, 2), and how many tokens each answer has."""

    policy_B2: torch.Tensor
    reference_B2: torch.Tensor
    tokens_B2: torch.Tensor

    @property
    def ratio_B2(self) -> torch.Tensor:
        """log(policy / reference) of each answer."""
        return self.policy_B2 - self.reference_B2


@dataclass(frozen=True, slots=True)
class DpoOptions:
    """What the losses of `dpo_loss` read, by TRL's names."""

    beta: float = 0.1
    label_smoothing: float = 0.0
    f_divergence_type: str = "reverse_kl"
    f_alpha_divergence_coef: float = 0.5
    discopop_tau: float = 0.05


def dpo_loss(name: str, logps: PairLogps, options: DpoOptions) -> torch.Tensor:
    """Return one of `DPO_LOSSES` for each pair, shape (B,)."""
    return DPO_LOSSES[name](logps, options)


def divergence_scores(ratio_B2: torch.Tensor, options: DpoOptions) -> torch.Tensor:
    """Return f'(policy / reference) of each answer, up to a constant (Wang et al. 2024)."""
    kind, alpha = options.f_divergence_type, options.f_alpha_divergence_coef
    if kind == "forward_kl":
        return 1 - torch.exp(-ratio_B2)
    if kind == "js_divergence":
        return math.log(2) + F.logsigmoid(ratio_B2)
    if kind == "alpha_divergence" and abs(alpha - 1) >= 1e-6:
        return torch.expm1(((alpha - 1) * ratio_B2).clamp(max=80.0)) / (alpha - 1)
    return ratio_B2


def _gap(logps: PairLogps, options: DpoOptions, *, per_token: bool = False) -> torch.Tensor:
    scores_B2 = divergence_scores(logps.ratio_B2, options)
    if per_token:
        scores_B2 = scores_B2 / logps.tokens_B2
    return scores_B2[:, 0] - scores_B2[:, 1]


def _smoothed(gap_B: torch.Tensor, epsilon: float) -> torch.Tensor:
    return -(1 - epsilon) * F.logsigmoid(gap_B) - epsilon * F.logsigmoid(-gap_B)


def _sigmoid(logps: PairLogps, o: DpoOptions) -> torch.Tensor:
    # Rafailov et al. 2023, eq. 7; with label smoothing, conservative DPO (Mitchell 2023).
    return _smoothed(o.beta * _gap(logps, o), o.label_smoothing)


def _sigmoid_norm(logps: PairLogps, o: DpoOptions) -> torch.Tensor:
    # The same, of ratios averaged over tokens (Lambert et al. 2024, Tulu 3).
    return -F.logsigmoid(o.beta * _gap(logps, o, per_token=True))


def _hinge(logps: PairLogps, o: DpoOptions) -> torch.Tensor:
    # SLiC's hinge (Zhao et al. 2023) on DPO's rewards.
    return torch.relu(1 - o.beta * _gap(logps, o))


def _ipo(logps: PairLogps, o: DpoOptions) -> torch.Tensor:
    # Azar et al. 2023, eq. 17; averaged over tokens, as its authors ran it.
    return (_gap(logps, o, per_token=True) - 1 / (2 * o.beta)) ** 2


def _exo_pair(logps: PairLogps, o: DpoOptions) -> torch.Tensor:
    # Ji et al. 2024, eq. 16 for two answers.
    gap_B, e = o.beta * _gap(logps, o), o.label_smoothing
    win_B, lose_B = F.logsigmoid(gap_B), F.logsigmoid(-gap_B)
    return win_B.exp() * (win_B - math.log1p(-e)) + lose_B.exp() * (lose_B - math.log(e))


def _nca_pair(logps: PairLogps, o: DpoOptions) -> torch.Tensor:
    # Chen et al. 2024 (noise contrastive alignment), two answers.
    won_B, lost_B = (o.beta * logps.ratio_B2).unbind(1)
    return -F.logsigmoid(won_B) - 0.5 * F.logsigmoid(-won_B) - 0.5 * F.logsigmoid(-lost_B)


def _robust(logps: PairLogps, o: DpoOptions) -> torch.Tensor:
    # Chowdhury et al. 2024: unbiased where labels are flipped with probability epsilon.
    gap_B, e = o.beta * _gap(logps, o), o.label_smoothing
    return (-(1 - e) * F.logsigmoid(gap_B) + e * F.logsigmoid(-gap_B)) / (1 - 2 * e)


def _bco_pair(logps: PairLogps, o: DpoOptions) -> torch.Tensor:
    # Jung et al. 2024, without the shift of the rewards, as TRL has it for pairs.
    won_B, lost_B = (o.beta * logps.ratio_B2).unbind(1)
    return -F.logsigmoid(won_B) - F.logsigmoid(-lost_B)


def _sppo_hard(logps: PairLogps, o: DpoOptions) -> torch.Tensor:
    # Wu et al. 2024, eq. 4.7 with P = 1 for the winner and 0 for the loser.
    won_B, lost_B = logps.ratio_B2.unbind(1)
    return (won_B - 0.5 / o.beta) ** 2 + (lost_B + 0.5 / o.beta) ** 2


def _aot(logps: PairLogps, o: DpoOptions) -> torch.Tensor:
    # Melnyk et al. 2024: both margins sorted, within one forward pass.
    policy_B, reference_B = (x[:, 0] - x[:, 1] for x in (logps.policy_B2, logps.reference_B2))
    gap_B = policy_B.sort().values - reference_B.sort().values
    return _smoothed(o.beta * gap_B, o.label_smoothing)


def _aot_unpaired(logps: PairLogps, o: DpoOptions) -> torch.Tensor:
    sorted_B2 = logps.ratio_B2.sort(dim=0).values
    return _smoothed(o.beta * (sorted_B2[:, 0] - sorted_B2[:, 1]), o.label_smoothing)


def _apo_zero(logps: PairLogps, o: DpoOptions) -> torch.Tensor:
    # D'Oosterlinck et al. 2024, eq. 7.
    won_B, lost_B = torch.sigmoid(o.beta * logps.ratio_B2).unbind(1)
    return 1 - won_B + lost_B


def _apo_down(logps: PairLogps, o: DpoOptions) -> torch.Tensor:
    # D'Oosterlinck et al. 2024, eq. 8.
    won_B, lost_B = (o.beta * logps.ratio_B2).unbind(1)
    return torch.sigmoid(won_B) + 1 - torch.sigmoid(won_B - lost_B)


def _discopop(logps: PairLogps, o: DpoOptions) -> torch.Tensor:
    # Lu et al. 2024, eq. 5.
    gap_B = o.beta * _gap(logps, o)
    share_B = torch.sigmoid(gap_B / o.discopop_tau)
    return -F.logsigmoid(gap_B) * (1 - share_B) + torch.exp(-gap_B) * share_B


def _sft(logps: PairLogps, o: DpoOptions) -> torch.Tensor:
    # The chosen tokens' mean NLL over the whole forward pass, as TRL has it.
    mean = -logps.policy_B2[:, 0].sum() / logps.tokens_B2[:, 0].sum()
    return mean.expand(len(logps.policy_B2))


DPO_LOSSES: Mapping[str, Callable[[PairLogps, DpoOptions], torch.Tensor]] = {
    "sigmoid": _sigmoid, "hinge": _hinge, "ipo": _ipo, "exo_pair": _exo_pair,
    "nca_pair": _nca_pair, "robust": _robust, "bco_pair": _bco_pair, "sppo_hard": _sppo_hard,
    "aot": _aot, "aot_unpaired": _aot_unpaired, "apo_zero": _apo_zero, "apo_down": _apo_down,
    "discopop": _discopop, "sft": _sft, "sigmoid_norm": _sigmoid_norm,
}  # fmt: skip
"""DPO's family of losses, by TRL's names."""
