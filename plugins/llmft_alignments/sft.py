"""Supervised fine-tuning on the completions of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from llmft.api import (
    Alignment,
    AlignmentConfig,
    Encoded,
    Field,
    StageContext,
    StageResult,
    hookimpl,
)
from llmft.toolkit import label_nll

if TYPE_CHECKING:
    import torch


class Sft(Alignment["Sft.Config"]):
    """Supervised fine-tuning: the loss is on the completion, not on the prompt."""

    method = "sft"
    rows = ("completion", "chat", "text")
    produces = "policy"
    supports_packing = True

    class Config(AlignmentConfig):
        """The loss: SFTConfig's and TrainingArguments' names."""

        loss_type: Literal["nll", "dft"] = Field(
            "nll",
            description="nll: the negative log-likelihood of each token; dft: the same, weighted by"
            " the token's own likelihood (dynamic fine-tuning)",
        )
        label_smoothing_factor: float = Field(
            0.0,
            ge=0,
            lt=1,
            description="the share of each label that is spread evenly over the vocabulary",
        )

        @model_validator(mode="after")
        def _fit_together(self) -> Sft.Config:
            if self.label_smoothing_factor and self.loss_type != "nll":
                raise ValueError("label_smoothing_factor is read by loss_type nll only")
            return self

    def train(self, context: StageContext) -> StageResult:
        objective = CompletionLoss(self.config.loss_type, self.config.label_smoothing_factor)
        return context.fit(context.data.encode(context.data.rows()), objective)


class CompletionLoss:
    """Cross-entropy of the trained-on tokens; an optimiser step's loss is the mean, in nats.

    loss_type: `dft` weights each token by its likelihood, without a gradient (Wu et al. 2025,
    arXiv:2508.05629). smoothing: as in `label_nll`.
    """

    def __init__(self, loss_type: str = "nll", smoothing: float = 0.0) -> None:
        self.loss_type, self.smoothing = loss_type, smoothing

    def weight(self, batch: Sequence[Encoded]) -> float:
        return float(sum(row.n_labels for row in batch))

    def loss(
        self, model: Any, batch: Sequence[Encoded]
    ) -> tuple[torch.Tensor, Mapping[str, float]]:
        tokens = sum(len(row.input_ids) for row in batch)
        nll_N = label_nll(model, batch, label_smoothing=self.smoothing).nll_N
        if self.loss_type == "dft":
            nll_N = nll_N * (-nll_N.detach()).exp()
        return nll_N.sum(), {"tokens": float(tokens)}


@hookimpl
def llmft_alignments() -> list[type[Sft]]:
    return [Sft]
