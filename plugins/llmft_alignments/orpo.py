"""Odds ratio preference optimisation: supervised fine-tuning and preference in one loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from llmft.api import (
    Alignment,
    AlignmentConfig,
    Encoded,
    EncodedPair,
    Field,
    Line,
    StageContext,
    StageRef,
    StageResult,
    hookimpl,
)
from llmft.toolkit import tensor_like
from llmft_alignments.pairs import (
    PREFERENCES,
    HeldOut,
    pair_nll,
    per_answer,
    refuse_few,
    token_counts,
    tokens_of,
)
from llmft_alignments.start import dropout_off, refuse_other_start

if TYPE_CHECKING:
    import torch


class Orpo(Alignment["Orpo.Config"]):
    """Odds ratio preference optimisation (Hong et al. 2024): no reference, no second model.

    With `reward_model` and `kl_coef` it is the offline variant: an earlier stage's reward model
    ranks the data's answers, and the policy is kept near its start.
    """

    method = "orpo"
    rows = ("preference",)
    produces = "policy"
    greater_is_better: ClassVar = PREFERENCES

    class Config(AlignmentConfig):
        """TRL's ORPOConfig, by its own names, and the offline variant's."""

        beta: float = Field(
            0.1, ge=0, le=1000, description="the weight of the odds ratio: the paper's lambda"
        )
        learn_prompt: bool = Field(
            False,
            description="compute the loss on the prompt of the chosen row too, as TRL does; the"
            " paper's equations have only the answer",
        )
        disable_dropout: bool = Field(
            True, description="turn every dropout off, the base's and the adapter's"
        )
        reward_model: Annotated[Line | None, StageRef("reward_model")] = Field(
            None, description="an earlier stage whose reward model ranks the answers of each prompt"
        )
        kl_coef: float = Field(
            0.0, ge=0, le=1000, description="a penalty on moving away from the start's likelihoods"
        )

    def __init__(self, config: Orpo.Config) -> None:
        super().__init__(config)
        self.held_out = HeldOut()

    def train(self, context: StageContext) -> StageResult:
        pairs = context.data.encode_pairs(context.data.rows())
        refuse_few(pairs, context.name)
        if self.config.reward_model is not None:
            from llmft_alignments.dpo.reranking import reranked

            pairs = reranked(context, pairs, self.config.reward_model)
            refuse_few(pairs, context.name)
        items = [OrpoItem.of(pair, self.config.learn_prompt) for pair in pairs]
        if self.config.kl_coef:
            from llmft_alignments.dpo.reference import reference_token_logps

            start = reference_token_logps(context, pairs)
            refuse_other_start(context, pairs, answer_sums(pairs, start), first_step)
            items = [
                replace(item, start=tuple(logps.tolist()))
                for item, logps in zip(items, start, strict=True)
            ]
        with dropout_off(context, self.config.disable_dropout):
            return context.fit(items, OrpoObjective(self.config, context.models.shares_prompts))

    def evaluate(self, context: StageContext) -> Mapping[str, float | Sequence[float]]:
        return self.held_out.preferences(context)


@dataclass(frozen=True, slots=True)
class OrpoItem(EncodedPair):
    """A pair; prompt: how many of the chosen row's labels are the prompt's, which come first.

    start: the start's log-likelihood of every answer token, chosen before rejected.
    """

    prompt: int = 0
    start: tuple[float, ...] = ()

    @classmethod
    def of(cls, pair: EncodedPair, learn_prompt: bool) -> OrpoItem:
        """Return the pair, with the prompt of its chosen row as labels where that is asked."""
        chosen = pair.chosen
        whole = Encoded(chosen.input_ids, chosen.input_ids, chosen.origin)
        row, prompt = (whole, whole.n_labels - chosen.n_labels) if learn_prompt else (chosen, 0)
        return cls(row, pair.rejected, pair.shared, pair.margin, pair.origin, prompt)


class OrpoObjective:
    """NLL of the chosen answer plus its odds over the rejected one's; the mean over pairs.

    Both are averaged over tokens within a pair first, as in the paper's eq. 2.
    """

    def __init__(self, config: Orpo.Config, share: bool) -> None:
        self.config, self.share = config, share

    def weight(self, batch: Sequence[OrpoItem]) -> float:
        return float(len(batch))

    def loss(self, model: Any, batch: Sequence[OrpoItem]) -> tuple[torch.Tensor, dict[str, Any]]:
        from llmft_alignments.preference_maths import k3_divergence, log_odds_ratio, orpo_loss

        nll_N, row_N = pair_nll(model, batch, self.share)
        size = len(batch)
        ones = answer_labels(batch)
        answer_N = tensor_like(ones, nll_N)
        counts_B2 = token_counts(batch, nll_N)
        prompt_B = tensor_like([item.prompt for item in batch], nll_N)
        counts_B2[:, 0] -= prompt_B
        mean_logps_B2 = -per_answer(nll_N * answer_N, row_N, size) / counts_B2
        nll_B = per_answer(nll_N, row_N, size)[:, 0] / (counts_B2[:, 0] + prompt_B)
        loss_B = orpo_loss(nll_B, mean_logps_B2, self.config.beta)
        chosen_B, rejected_B = mean_logps_B2.detach().unbind(1)
        metrics: dict[str, Any] = {
            "nll_loss": nll_B.detach().sum(),
            "logps/chosen": chosen_B.sum(),
            "logps/rejected": rejected_B.sum(),
            "log_odds_ratio": log_odds_ratio(mean_logps_B2.detach()).sum(),
            "rewards/accuracies": (chosen_B > rejected_B).sum(),
            "tokens": tokens_of(batch),
        }
        if self.config.kl_coef:
            start_N = tensor_like([logp for item in batch for logp in item.start], nll_N)
            places = [place for place, is_answer in enumerate(ones) if is_answer]
            kept = tensor_like(places, row_N)
            moved_N = k3_divergence(-nll_N[kept], start_N)
            moved_B2 = per_answer(moved_N, row_N[kept], size) / counts_B2
            loss_B = loss_B + self.config.kl_coef * moved_B2.mean(1)
            metrics["kl"] = moved_B2.detach().mean(1).sum()
        return loss_B.sum(), metrics


def answer_labels(batch: Sequence[OrpoItem]) -> list[float]:
    """Return 1 for each label that is an answer's and 0 for the prompts'."""
    ones: list[float] = []
    for item in batch:
        ones += [0.0] * item.prompt + [1.0] * (item.chosen.n_labels - item.prompt)
        ones += [1.0] * item.rejected.n_labels
    return ones


def answer_sums(pairs: Sequence[EncodedPair], start: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the summed log-likelihood of each answer, (P, 2), of each pair's answer tokens."""
    import torch

    cut = (
        torch.split(logps, [pair.chosen.n_labels, pair.rejected.n_labels])
        for pair, logps in zip(pairs, start, strict=True)
    )
    return torch.stack([torch.stack([part.sum() for part in parts]) for parts in cut])


def first_step(
    pairs: Sequence[EncodedPair], policy_B2: torch.Tensor, reference_B2: torch.Tensor
) -> str:
    """Return in words what the first step would be, and what it has to be."""
    moved = float((policy_B2 - reference_B2).abs().mean())
    return f"its answers' log-likelihoods are off by {moved:.3f} nats in place of 0"


@hookimpl
def llmft_alignments() -> list[type[Orpo]]:
    return [Orpo]
