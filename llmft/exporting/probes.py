"""Two models side by side on the same token ids: how far their log-probabilities are apart."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from llmft.api import CompletionRow, TextRow
from llmft.api.errors import DataError
from llmft.api.rows import Encoded
from llmft.api.train_settings import TrainSettings
from llmft.inference.trained import TrainedStage, sampled_texts
from llmft.modeling.base_model import max_positions

_TEXT = "The quick brown fox jumps over the lazy dog, and 12 boxes of 3.5 kg stand by."
_ROWS = 8


@dataclass(frozen=True)
class Distance:
    """How far two models are apart on the same ids.

    tokens: how many next tokens were compared. max_logp, mean_logp: the largest and the mean
    difference of their log-probabilities, in nats. same_top: the share of places at which both have
    the same likeliest token; None where that is not known.
    """

    tokens: int
    max_logp: float
    mean_logp: float
    same_top: float | None

    def __str__(self) -> str:
        told = (
            f"log-probabilities of {self.tokens} tokens differ by {self.max_logp:.2e} at most,"
            f" {self.mean_logp:.2e} in the mean"
        )
        if self.same_top is None:
            return told
        return f"{told}; the likeliest token is the same at {self.same_top:.1%}"


def probe_rows(trained: TrainedStage) -> list[tuple[int, ...]]:
    """Return rows of token ids to compare models on: the run's own samples, else a fixed text."""
    encoder, limit = trained.encoder, max_positions(trained.base.config)
    adapter = trained.bound.model_adapter
    room = limit - (adapter.virtual_tokens() if adapter else 0) if limit else None
    rows: list[Encoded] = []
    for found in sampled_texts(trained.folder):
        prompt = found["prompt"]
        prompt = prompt if isinstance(prompt, str) else tuple(prompt)
        if found.get("when") == "after" and len(rows) < _ROWS:
            with suppress(DataError):  # nothing ends an answer, and the model was trained so
                rows.append(encoder.completion(CompletionRow(prompt, str(found.get("answer", "")))))
    if not rows:
        rows = list(encoder.encode([TextRow(_TEXT)], TrainSettings())[0])
    return [row.input_ids[:room] for row in rows if len(row.input_ids) > 1]


def next_tokens(
    model: Any, rows: Sequence[Sequence[int]]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return of each row the log-probabilities of its next tokens, and the likeliest ones.

    Two tensors of T - 1 numbers a row: float32, and ids, on the CPU.
    """
    device = next(model.parameters()).device
    found = []
    with torch.no_grad():
        for row in rows:
            ids_1T = torch.tensor([list(row)], device=device)
            logps_TV = torch.log_softmax(model(input_ids=ids_1T).logits[0, :-1].float(), dim=-1)
            own_T = logps_TV.gather(1, ids_1T[0, 1:, None])[:, 0]
            found.append((own_T.cpu(), logps_TV.argmax(-1).cpu()))
    return found


def distance(
    first: Sequence[tuple[torch.Tensor, torch.Tensor]],
    second: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> Distance:
    """Return how far apart two models are, of what `next_tokens` gave for each."""
    logps = torch.cat([(a - b).abs() for (a, _), (b, _) in zip(first, second, strict=True)])
    same = torch.cat([(a == b).float() for (_, a), (_, b) in zip(first, second, strict=True)])
    return Distance(len(logps), float(logps.max()), float(logps.mean()), float(same.mean()))
