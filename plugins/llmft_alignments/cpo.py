"""Contrastive preference optimisation and SimPO: pairs of answers, and no reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from llmft_alignments.pairs import (
    PREFERENCES,
    HeldOut,
    pair_logps,
    preferences_of,
    refuse_few,
    token_counts,
    tokens_of,
)
from llmft_alignments.start import dropout_off

if TYPE_CHECKING:
    import torch

AVERAGED = ("ipo", "simpo")
"""Losses of log-likelihoods that are averaged over an answer's tokens; the others' are summed."""


class Cpo(Alignment["Cpo.Config"]):
    """Contrastive preference optimisation (Xu et al. 2024) and SimPO (Meng et al. 2024).

    There is no reference and no second model; the likelihood of the chosen answer is trained too.
    """

    method = "cpo"
    rows = ("preference",)
    produces = "policy"
    supports_token_budget = False
    greater_is_better: ClassVar = PREFERENCES | {
        "reward_accuracy": True, "reward_margin": True, "objective_loss": False,
    }  # fmt: skip

    class Config(AlignmentConfig):
        """TRL's CPOConfig, by its own names."""

        loss_type: Literal["sigmoid", "hinge", "ipo", "simpo"] = Field(
            "sigmoid",
            description="the loss of a pair; simpo and ipo average an answer's log-likelihood over"
            " its tokens, the others add it up",
        )
        beta: float = Field(
            0.1, gt=0, le=1000, description="the scale of the rewards; for IPO, its tau"
        )
        cpo_alpha: float = Field(
            1.0,
            ge=0,
            le=1e6,
            description="the weight of the chosen answer's negative log-likelihood; the paper's"
            " SimPO has 0",
        )
        simpo_gamma: float = Field(
            0.5,
            ge=0,
            le=1e6,
            description="SimPO's target margin between the rewards of both answers",
        )
        label_smoothing: float = Field(
            0.0, ge=0, lt=0.5, description="the assumed share of preferences that are wrong"
        )
        alpha: float = Field(
            0.0,
            ge=-100,
            le=100,
            description="AlphaPO's shape of the reward, (1 - p ** -alpha) / alpha; 0: log p",
        )
        disable_dropout: bool = Field(
            True, description="turn every dropout off, the base's and the adapter's"
        )

        @model_validator(mode="after")
        def _fit_together(self) -> Cpo.Config:
            if self.label_smoothing and self.loss_type in ("hinge", "ipo"):
                raise ValueError("label_smoothing is read by loss_type sigmoid and simpo only")
            gamma = type(self).model_fields["simpo_gamma"].default
            if self.simpo_gamma != gamma and self.loss_type != "simpo":
                raise ValueError("simpo_gamma is read by loss_type simpo only")
            return self

    def __init__(self, config: Cpo.Config) -> None:
        super().__init__(config)
        # The likelihood of chosen answers is a mean over the tokens of a forward pass.
        self.supports_token_budget = not config.cpo_alpha
        self.held_out = HeldOut()

    def train(self, context: StageContext) -> StageResult:
        pairs = context.data.encode_pairs(context.data.rows())
        refuse_few(pairs, context.name)
        objective = CpoObjective(self.config, context.models.shares_prompts)
        with dropout_off(context, self.config.disable_dropout):
            return context.fit(pairs, objective)

    def evaluate(self, context: StageContext) -> Mapping[str, float | Sequence[float]]:
        """Return of each held-out pair which answer is likelier, and which has the higher reward.

        reward_accuracy, reward_margin: of the rewards that are trained with, averaged over tokens
        where the loss does; a tie is wrong. objective_loss: the loss that is trained with.
        """
        import torch

        pairs = self.held_out.pairs(context)
        if not pairs:
            return {}
        logps_P2 = self.held_out.logps(context)
        objective = CpoObjective(self.config, context.models.shares_prompts)
        size = context.train.per_device_eval_batch_size
        found = [
            objective.judged(pairs[at : at + size], logps_P2[at : at + size])
            for at in range(0, len(pairs), size)
        ]
        rewards_P2 = torch.cat([rewards_B2 for rewards_B2, _, _ in found]).double()
        margin_P = rewards_P2[:, 0] - rewards_P2[:, 1]
        return preferences_of(logps_P2) | {
            "reward_accuracy": (margin_P > 0).double().tolist(),
            "reward_margin": margin_P.tolist(),
            "objective_loss": torch.cat([loss_B for _, loss_B, _ in found]).double().tolist(),
        }


class CpoObjective:
    """A pair's loss and the chosen answers' likelihood; a step's loss is the mean over its pairs.

    The likelihood is averaged over a forward pass's tokens, as TRL has it.
    """

    def __init__(self, config: Cpo.Config, share: bool) -> None:
        self.config, self.share = config, share

    def judged(
        self, pairs: Sequence[EncodedPair], logps_B2: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return rewards (B, 2), the loss of each pair (B,), and the chosen answers' NLL (scalar).

        logps_B2: the summed log-likelihood of each answer.
        """
        from llmft_alignments.preference_maths import cpo_loss, shaped_rewards

        config = self.config
        tokens_B2 = token_counts(pairs, logps_B2)
        used_B2 = logps_B2 / tokens_B2 if config.loss_type in AVERAGED else logps_B2
        shaped_B2 = shaped_rewards(used_B2, config.alpha)
        loss_B = cpo_loss(
            config.loss_type, shaped_B2, config.beta, config.label_smoothing, config.simpo_gamma
        )
        nll = -logps_B2[:, 0].sum() / tokens_B2[:, 0].sum()
        if config.cpo_alpha:
            loss_B = loss_B + config.cpo_alpha * nll
        return config.beta * shaped_B2, loss_B, nll

    def weight(self, batch: Sequence[EncodedPair]) -> float:
        return float(len(batch))

    def loss(
        self, model: Any, batch: Sequence[EncodedPair]
    ) -> tuple[torch.Tensor, dict[str, float | torch.Tensor]]:
        logps_B2 = pair_logps(model, batch, self.share)
        rewards_B2, loss_B, nll = self.judged(batch, logps_B2)
        rewards_B2, logps_B2 = rewards_B2.detach(), logps_B2.detach()
        if self.config.loss_type in AVERAGED:
            logps_B2 = logps_B2 / token_counts(batch, logps_B2)
        chosen_B, rejected_B = rewards_B2.unbind(1)
        return loss_B.sum(), {
            "nll_loss": nll.detach() * len(batch),
            "logps/chosen": logps_B2[:, 0].sum(),
            "logps/rejected": logps_B2[:, 1].sum(),
            "rewards/chosen": chosen_B.sum(),
            "rewards/rejected": rejected_B.sum(),
            "rewards/margins": (chosen_B - rejected_B).sum(),
            "rewards/accuracies": (chosen_B > rejected_B).float().sum(),
            "tokens": tokens_of(batch),
        }


@hookimpl
def llmft_alignments() -> list[type[Cpo]]:
    return [Cpo]
