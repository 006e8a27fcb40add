"""Supervised fine-tuning on the completions of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import model_validator

from llmft.api import (
    Alignment,
    AlignmentConfig,
    Encoded,
    Field,
    StageContext,
    StageError,
    StageResult,
    hookimpl,
)
from llmft.toolkit import label_nll, router_coefficient, router_loss

if TYPE_CHECKING:
    import torch

Coefficient = Annotated[float, Field(ge=0, le=100)]


class Sft(Alignment["Sft.Config"]):
    """Supervised fine-tuning: the loss is on the completion, not on the prompt."""

    method = "sft"
    rows = ("completion", "chat", "text")
    produces = "policy"
    supports_packing = True
    supports_streaming = True

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

        router_aux_loss_coef: Coefficient | Literal["config"] | None = Field(
            None,
            description="of a mixture of experts: the weight of the loss that spreads tokens over"
            " the experts (Fedus et al. 2021); config: the weight in the model's config, TRL's"
            " default; default: that weight where the config has output_router_logits: true, as"
            " transformers' own loss has it, else 0",
        )

        @model_validator(mode="after")
        def _fit_together(self) -> Sft.Config:
            if self.label_smoothing_factor and self.loss_type != "nll":
                raise ValueError("label_smoothing_factor is read by loss_type nll only")
            return self

    def train(self, context: StageContext) -> StageResult:
        objective = CompletionLoss(
            self.config.loss_type, self.config.label_smoothing_factor, self._of_routers(context)
        )
        return context.fit(context.data.encode(context.data.rows()), objective)

    def _of_routers(self, context: StageContext) -> float:
        """Return the weight of the routers' loss, 0 where the model has no routers."""
        asked = self.config.router_aux_loss_coef
        own = router_coefficient(context.models.model, always=asked is not None)
        if asked is None or asked == "config":
            return own or 0.0
        if asked and own is None:
            raise StageError(
                "E300",
                f"stage '{context.name}': router_aux_loss_coef is {asked:g}, and this model is no"
                " mixture of experts that computes such a loss",
                fix="leave router_aux_loss_coef out",
            )
        return asked


class CompletionLoss:
    """Cross-entropy of the trained-on tokens; an optimiser step's loss is the mean, in nats.

    loss_type: `dft` weights each token by its likelihood, without a gradient (Wu et al. 2025,
    arXiv:2508.05629). smoothing: as in `label_nll`. routers: the weight of the routers' loss of a
    mixture, the mean over forward passes by their trained-on tokens.
    """

    def __init__(
        self, loss_type: str = "nll", smoothing: float = 0.0, routers: float = 0.0
    ) -> None:
        self.loss_type, self.smoothing, self.routers = loss_type, smoothing, routers

    def weight(self, batch: Sequence[Encoded]) -> float:
        return float(sum(row.n_labels for row in batch))

    def loss(self, model: Any, batch: Sequence[Encoded]) -> tuple[torch.Tensor, Mapping[str, Any]]:
        tokens = float(sum(len(row.input_ids) for row in batch))
        if not self.routers:
            return self._of_labels(model, batch), {"tokens": tokens}
        with router_loss(model) as found:
            loss = self._of_labels(model, batch)
        weight = self.weight(batch)
        if not found:  # the architecture has the setting, and computes no such loss
            return loss, {"tokens": tokens}
        (routers,) = found
        told = (weight * routers.detach(), weight)
        return loss + self.routers * weight * routers, {"tokens": tokens, "aux_loss": told}

    def _of_labels(self, model: Any, batch: Sequence[Encoded]) -> torch.Tensor:
        nll_N = label_nll(model, batch, label_smoothing=self.smoothing).nll_N
        if self.loss_type == "dft":
            nll_N = nll_N * (-nll_N.detach()).exp()
        return nll_N.sum()


@hookimpl
def llmft_alignments() -> list[type[Sft]]:
    return [Sft]
