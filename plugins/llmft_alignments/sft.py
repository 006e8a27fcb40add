"""Supervised fine-tuning: learn to say what the rows say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmft.api import (
    Alignment,
    AlignmentConfig,
    Encoded,
    StageContext,
    StageResult,
    hookimpl,
)
from llmft.toolkit import label_nll

if TYPE_CHECKING:
    import torch


class Sft(Alignment["Sft.Config"]):
    """Supervised fine-tuning on completions: the prompt is read, only the answer is learnt."""

    method = "sft"
    rows = ("completion", "chat", "text")
    produces = "policy"
    supports_packing = True

    class Config(AlignmentConfig):
        """Supervised fine-tuning has no settings of its own."""

    def train(self, context: StageContext) -> StageResult:
        return context.fit(context.data.encode(context.data.rows()), CompletionLoss())


class CompletionLoss:
    """Cross-entropy of the learnt tokens; an optimiser step's loss is their mean, in nats."""

    def weight(self, batch: Sequence[Encoded]) -> float:
        return float(sum(row.n_labels for row in batch))

    def loss(
        self, model: Any, batch: Sequence[Encoded]
    ) -> tuple[torch.Tensor, Mapping[str, float]]:
        tokens = sum(len(row.input_ids) for row in batch)
        return label_nll(model, batch).nll_N.sum(), {"tokens": float(tokens)}


@hookimpl
def llmft_alignments() -> list[type[Sft]]:
    return [Sft]
