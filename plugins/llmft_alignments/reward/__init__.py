"""A reward model: one number for a text, higher for what people prefer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from llmft.api import (
    Alignment,
    AlignmentConfig,
    EncodedPair,
    Field,
    StageContext,
    StageError,
    StageResult,
    hookimpl,
)
from llmft.toolkit import add_score_head, load_score_head, rewards, save_score_head, tensor_like
from llmft_alignments.pairs import HeldOut, laid, over_batches, refuse_few, tokens_of
from llmft_alignments.start import dropout_off

if TYPE_CHECKING:
    import torch


class Reward(Alignment["Reward.Config"]):
    """A Bradley-Terry reward model: a scalar head on the base with the stage's adapter.

    The reward is read at a text's last token. The head is saved beside the adapter.
    """

    method = "reward"
    rows = ("preference",)
    produces = "reward_model"
    greater_is_better: ClassVar = {"accuracy": True, "margin": True, "calibration_error": False}

    class Config(AlignmentConfig):
        """TRL's RewardConfig, by its own names."""

        center_rewards_coefficient: float = Field(
            0.0,
            ge=0,
            le=100,
            description="penalty that keeps rewards around 0; 0.01 is usual, 0: none",
        )
        disable_dropout: bool = Field(
            True, description="turn every dropout off, the base's and the adapter's"
        )
        use_margin: bool = Field(
            False, description="rewards must differ by at least the pair's margin (Llama 2)"
        )

    def __init__(self, config: Reward.Config) -> None:
        super().__init__(config)
        self.held_out = HeldOut()

    def train(self, context: StageContext) -> StageResult:
        pairs = context.data.encode_pairs(context.data.rows())
        refuse_few(pairs, context.name)
        if self.config.use_margin and any(pair.margin is None for pair in pairs):
            bare = next(pair for pair in pairs if pair.margin is None)
            raise StageError(
                "E300",
                f"{bare.origin}: use_margin is set, and the pair has no margin",
                fix="name its column under data.columns, or remove use_margin",
            )
        with dropout_off(context, self.config.disable_dropout):
            return context.fit(pairs, RewardObjective(self.config, context.models.shares_prompts))

    def evaluate(self, context: StageContext) -> Mapping[str, float | Sequence[float]]:
        from llmft_alignments.reward.report import measured, write_report

        pairs = self.held_out.pairs(context)
        if not pairs:
            return {}
        model, share = context.models.model, context.models.shares_prompts
        rewards_P2 = over_batches(
            context, pairs, lambda some: pair_rewards(model, some, share), "judge pairs"
        )
        metrics = measured(rewards_P2)
        # Written before and after training: what stays is the report of the trained model.
        write_report(context.folder, rewards_P2, metrics)
        gap_P = (rewards_P2[:, 0] - rewards_P2[:, 1]).double()
        by_row = {
            "accuracy": (gap_P > 0).double().tolist(),
            "margin": gap_P.tolist(),
            "reward_mean": rewards_P2.double().mean(1).tolist(),
        }
        bounds = ("accuracy_low", "accuracy_high")  # of the report; the scores have their own
        rest = {name: value for name, value in metrics.items() if name not in bounds}
        return {**rest, **by_row}

    def extend(self, model: Any) -> None:
        add_score_head(model)

    def save(self, model: Any, folder: Path) -> None:
        save_score_head(model, folder)

    def load(self, model: Any, folder: Path) -> None:
        load_score_head(model, folder)


def pair_rewards(model: Any, pairs: Sequence[EncodedPair], share: bool) -> torch.Tensor:
    """Return the reward of each answer, shape (B, 2): chosen, rejected."""
    rows, shared = laid(pairs, share)
    return rewards(model, rows, shared).view(len(pairs), 2)


class RewardObjective:
    """The Bradley-Terry loss; an optimiser step's loss is its mean over its pairs."""

    def __init__(self, config: Reward.Config, share: bool) -> None:
        self.config, self.share = config, share

    def weight(self, batch: Sequence[EncodedPair]) -> float:
        return float(len(batch))

    def loss(
        self, model: Any, batch: Sequence[EncodedPair]
    ) -> tuple[torch.Tensor, Mapping[str, Any]]:
        from llmft_alignments.preference_maths import bradley_terry_loss

        rewards_B2 = pair_rewards(model, batch, self.share)
        margin_B = None
        if self.config.use_margin:
            margin_B = tensor_like([pair.margin or 0.0 for pair in batch], rewards_B2)
        loss_B = bradley_terry_loss(rewards_B2, margin_B, self.config.center_rewards_coefficient)
        chosen_B, rejected_B = rewards_B2.detach().unbind(1)
        return loss_B.sum(), {
            "accuracy": (chosen_B > rejected_B).sum(),
            "margin": (chosen_B - rejected_B).sum(),
            "mean_reward": (chosen_B + rejected_B).sum() / 2,
            "tokens": tokens_of(batch),
        }


@hookimpl
def llmft_alignments() -> list[type[Reward]]:
    return [Reward]
