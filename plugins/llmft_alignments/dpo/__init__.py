"""Direct preference optimisation: the chosen answer made likelier than the rejected one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from llmft.api import (
    Alignment,
    AlignmentConfig,
    EncodedPair,
    Field,
    StageContext,
    StageResult,
    hookimpl,
)
from llmft.toolkit import tensor_like
from llmft_alignments.pairs import (
    PREFERENCES,
    HeldOut,
    pair_logps,
    preferences_of,
    refuse_few,
    token_counts,
    tokens_of,
)
from llmft_alignments.start import dropout_off, refuse_other_start

if TYPE_CHECKING:
    import torch

LossName = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip
SMOOTHED = ("sigmoid", "exo_pair", "robust", "aot", "aot_unpaired")
OVER_A_PASS = ("aot", "aot_unpaired", "sft")
"""Losses of a pair that depend on the other pairs of its forward pass."""
ON_THE_GAP = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")


def _sigmoid() -> list[LossName]:
    return ["sigmoid"]


HELD_OUT = "reference-held-out.safetensors"


class Dpo(Alignment["Dpo.Config"]):
    """Direct preference optimisation (Rafailov et al. 2023) and its family, by TRL's names.

    The reference is the stage's start: the adapter that `start_from` names, else the base without
    the adapter. Its log-likelihoods are computed once, before the first step.
    """

    method = "dpo"
    rows = ("preference",)
    produces = "policy"
    greater_is_better: ClassVar = PREFERENCES | {
        "reward_accuracy": True, "reward_margin": True, "objective_loss": False,
    }  # fmt: skip

    class Config(AlignmentConfig):
        """TRL's DPOConfig, by its own names."""

        beta: float = Field(
            0.1,
            gt=0,
            le=1000,
            description="the KL coefficient; for IPO, its tau",
        )
        loss_type: list[LossName] = Field(
            default_factory=_sigmoid,
            min_length=1,
            max_length=15,
            description="the loss, or several losses that are added",
        )
        loss_weights: list[float] | None = Field(
            None, min_length=1, max_length=15, description="the weight of each loss; default: 1"
        )
        label_smoothing: float = Field(
            0.0,
            ge=0,
            lt=0.5,
            description="the assumed share of preferences that are wrong",
        )
        f_divergence_type: Literal[
            "reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"
        ] = Field(
            "reverse_kl", description="the divergence that keeps the policy near the reference"
        )
        f_alpha_divergence_coef: float = Field(
            0.5, ge=-100, le=100, description="the alpha of alpha_divergence"
        )
        disable_dropout: bool = Field(
            True, description="turn every dropout off, the base's and the adapter's"
        )
        discopop_tau: float = Field(0.05, gt=0, le=100, description="the temperature of discopop")

        @model_validator(mode="after")
        def _fit_together(self) -> Dpo.Config:
            names = self.loss_type
            if self.loss_weights is not None and len(self.loss_weights) != len(names):
                raise ValueError(
                    f"loss_weights has {len(self.loss_weights)} entries for {len(names)} losses"
                )
            if self.label_smoothing and not set(names) & set(SMOOTHED):
                raise ValueError(f"label_smoothing is read by {', '.join(SMOOTHED)} only")
            if "exo_pair" in names and not self.label_smoothing:
                raise ValueError("exo_pair needs label_smoothing above 0, such as 1e-3")
            rest = sorted(set(names) - set(ON_THE_GAP))
            if self.f_divergence_type != "reverse_kl" and rest:
                raise ValueError(f"{rest[0]} is defined for f_divergence_type: reverse_kl only")
            return self

    def __init__(self, config: Dpo.Config) -> None:
        super().__init__(config)
        self.supports_token_budget = not set(config.loss_type) & set(OVER_A_PASS)
        self.held_out = HeldOut()
        self.of_reference: torch.Tensor | None = None

    def train(self, context: StageContext) -> StageResult:
        from llmft_alignments.dpo.reference import reference_logps

        pairs = context.data.encode_pairs(context.data.rows())
        refuse_few(pairs, context.name)
        reference_P2 = reference_logps(context, pairs)
        if held_out := self.held_out.pairs(context):
            self.of_reference = reference_logps(context, held_out, HELD_OUT)
        objective = DpoObjective(self.config, context.models.shares_prompts)
        refuse_other_start(context, pairs, reference_P2, objective.first_step)
        items = [
            DpoItem(
                pair.chosen, pair.rejected, pair.shared, pair.margin, pair.origin, reference=(c, r)
            )
            for pair, (c, r) in zip(pairs, reference_P2.tolist(), strict=True)
        ]
        with dropout_off(context, self.config.disable_dropout):
            return context.fit(items, objective)

    def evaluate(self, context: StageContext) -> Mapping[str, float | Sequence[float]]:
        """Return of each held-out pair what the policy prefers, alone and against the reference.

        reward_accuracy, reward_margin: TRL's eval_rewards/accuracies and eval_rewards/margins; a
        tie is wrong. objective_loss: the loss that is trained with.
        """
        pairs = self.held_out.pairs(context)
        if not pairs:
            return {}
        logps_P2 = self.held_out.logps(context)
        found: dict[str, list[float]] = preferences_of(logps_P2)
        if self.of_reference is None:  # a method that was not trained has no reference
            return found
        objective = DpoObjective(self.config, context.models.shares_prompts)
        size = context.train.per_device_eval_batch_size
        losses: list[float] = []
        for start in range(0, len(pairs), size):
            some = slice(start, start + size)
            losses += objective.losses(pairs[some], logps_P2[some], self.of_reference[some])
        gap_P2 = (self.config.beta * (logps_P2 - self.of_reference)).double()
        margin_P = gap_P2[:, 0] - gap_P2[:, 1]
        return found | {
            "reward_accuracy": (margin_P > 0).double().tolist(),
            "reward_margin": margin_P.tolist(),
            "objective_loss": losses,
        }


@dataclass(frozen=True, slots=True)
class DpoItem(EncodedPair):
    """A pair with the reference's summed log-likelihood of each answer: chosen, rejected."""

    reference: tuple[float, float] = field(kw_only=True)


class DpoObjective:
    """The losses that a config names; an optimiser step's loss is their mean over its pairs."""

    def __init__(self, config: Dpo.Config, share: bool) -> None:
        from llmft_alignments.dpo.losses import DpoOptions

        weights = config.loss_weights or [1.0] * len(config.loss_type)
        self.mix = list(zip(config.loss_type, weights, strict=True))
        self.share = share
        self.options = DpoOptions(
            beta=config.beta,
            label_smoothing=config.label_smoothing,
            f_divergence_type=config.f_divergence_type,
            f_alpha_divergence_coef=config.f_alpha_divergence_coef,
            discopop_tau=config.discopop_tau,
        )

    def first_step(
        self, pairs: Sequence[EncodedPair], policy_B2: torch.Tensor, reference_B2: torch.Tensor
    ) -> str:
        """Return in words what the first step would be, and what it has to be."""
        from llmft_alignments.dpo.losses import PairLogps, dpo_loss

        def loss_of(logps: PairLogps) -> float:
            parts = (w * dpo_loss(name, logps, self.options).mean() for name, w in self.mix)
            return float(sum(parts))

        tokens_B2 = token_counts(pairs, policy_B2)
        loss = loss_of(PairLogps(policy_B2, reference_B2, tokens_B2))
        zero = loss_of(PairLogps(reference_B2, reference_B2, tokens_B2))
        chosen, rejected = (self.options.beta * (policy_B2 - reference_B2)).mean(0).tolist()
        return (
            f"its rewards are {chosen:.3f} (chosen) and {rejected:.3f} (rejected) in place of 0,"
            f" and its loss is {loss:.4f} in place of {zero:.4f}"
        )

    def losses(
        self, pairs: Sequence[EncodedPair], policy_B2: torch.Tensor, reference_B2: torch.Tensor
    ) -> list[float]:
        """Return the loss of each pair of a batch, the losses added up as in training."""
        from llmft_alignments.dpo.losses import PairLogps, dpo_loss

        logps = PairLogps(policy_B2, reference_B2, token_counts(pairs, policy_B2))
        parts: Any = (w * dpo_loss(name, logps, self.options) for name, w in self.mix)
        loss_B: Any = sum(parts)
        found: list[float] = loss_B.expand(len(pairs)).double().tolist()
        return found

    def weight(self, batch: Sequence[DpoItem]) -> float:
        return float(len(batch))

    def loss(self, model: Any, batch: Sequence[DpoItem]) -> tuple[torch.Tensor, dict[str, Any]]:
        from llmft_alignments.dpo.losses import PairLogps, dpo_loss

        policy_B2 = pair_logps(model, batch, self.share)
        reference_B2 = tensor_like([item.reference for item in batch], policy_B2)
        logps = PairLogps(policy_B2, reference_B2, token_counts(batch, policy_B2))
        loss_B: Any = sum(weight * dpo_loss(name, logps, self.options) for name, weight in self.mix)
        rewards_B2 = self.options.beta * logps.ratio_B2.detach()
        chosen, rejected = rewards_B2.sum(0).double()
        logps_2 = policy_B2.detach().sum(0)
        return loss_B.sum(), {
            "logps/chosen": logps_2[0],
            "logps/rejected": logps_2[1],
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": (rewards_B2[:, 0] > rewards_B2[:, 1]).sum(),
            "tokens": tokens_of(batch),
        }


@hookimpl
def llmft_alignments() -> list[type[Dpo]]:
    return [Dpo]
