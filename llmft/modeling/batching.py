"""Token rows as a model's inputs, and where their labels are predicted.

Rows are laid end to end where the model's attention keeps them apart (no padding is computed), and
padded on the right otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmft.api import Encoded
from llmft.api.rows import IGNORED
from llmft.modeling import attention
from llmft.modeling.levers import levers_of
from llmft.modeling.segments import to_device


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Rows on the model's device, and where their N labels are predicted.

    inputs: what the model is called with. labels_N, row_N: the labels, and the row (0..B-1) of
    each. keep: the positions at which logits are wanted, as `logits_at` takes them. line_N,
    column_N: where each label's stand among those.
    """

    inputs: dict[str, torch.Tensor]
    labels_N: torch.Tensor
    row_N: torch.Tensor
    keep: torch.Tensor
    line_N: torch.Tensor
    column_N: torch.Tensor

    def of_labels(self, there: torch.Tensor) -> torch.Tensor:
        """Return what stands at each label, shape (N, ...), of what the model gave at `keep`."""
        return there[self.line_N, self.column_N]


def batched(
    model: Any, rows: Sequence[Encoded], shared: Sequence[tuple[int, int]] | None
) -> PackedBatch:
    """Return rows end to end where the model's attention keeps them apart, else padded.

    shared: as for `label_nll`. Raises ValueError if no row has a label.
    """
    packed = is_padding_free(model)
    shared = shared if levers_of(model).shared_prompt else None
    inputs, at, labels, row = padding_free_inputs(rows, shared) if packed else padded(rows)
    if not len(labels):
        raise ValueError("no row of the batch has a label")
    width = inputs["input_ids"].shape[1]
    # Positions count from the end, so that an adapter may put virtual tokens in front.
    keep, column = torch.unique(at % width - width, return_inverse=True)
    line = torch.zeros_like(at) if packed else at // width
    inputs, more = on_device(model, inputs, [labels, row, keep, line, column])
    return PackedBatch(inputs, *more)


ON_THE_HOST = ("cu_seq_lens_q", "shared_prefix")
"""What attention reads as numbers: on a GPU, each layer would wait for them."""


def on_device(
    model: Any, inputs: dict[str, torch.Tensor], more: Sequence[torch.Tensor] = ()
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Return a model's inputs where it wants them, and other whole numbers on its device."""
    device = next(model.parameters()).device
    names = [name for name in inputs if name not in ON_THE_HOST]
    there = to_device([*(inputs[name] for name in names), *more], device)
    return inputs | dict(zip(names, there[: len(names)], strict=True)), there[len(names) :]


def is_padding_free(model: Any) -> bool:
    """Return whether a model's attention keeps rows apart that are laid end to end."""
    return attention.padding_free(model)


_Laid = tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]


def padding_free_inputs(rows: Sequence[Encoded], shared: Sequence[tuple[int, int]] | None) -> _Laid:
    """Return model inputs of shape (1, T) with boundaries, and where which label of which row is.

    A row that shares the start of an earlier one is laid from where it differs.
    """
    ids: list[int] = []
    places: list[int] = []
    bounds = [0]
    prefixes: list[tuple[int, int]] = []
    at: list[int] = []
    labels: list[int] = []
    row_of: list[int] = []
    for number, row in enumerate(rows):
        earlier, n = shared[number] if shared else (0, 0)
        before = bounds[earlier]
        start = len(ids) - n
        ids.extend(row.input_ids[n:])
        places.extend(range(n, len(row.input_ids)))
        bounds.append(len(ids))
        prefixes.append((before, n))
        for t, label in enumerate(row.labels):
            if t and label != IGNORED:
                at.append(start + t - 1 if t > n else before + t - 1)
                labels.append(label)
                row_of.append(number)
    inputs = {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([places]),
        "cu_seq_lens_q": torch.tensor(bounds, dtype=torch.int32),
    }
    if shared:
        inputs["shared_prefix"] = torch.tensor(prefixes)
    return inputs, torch.tensor(at), torch.tensor(labels), torch.tensor(row_of)


def padded(rows: Sequence[Encoded]) -> _Laid:
    """Return model inputs of shape (B, T), padded on the right and masked, and where labels are."""
    width = max(len(row.input_ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    target = torch.full((len(rows), width), IGNORED)
    for number, row in enumerate(rows):
        n = len(row.input_ids)
        ids[number, :n] = torch.tensor(row.input_ids)
        mask[number, :n] = 1
        target[number, : n - 1] = torch.tensor(row.labels[1:])
    at = (target != IGNORED).flatten().nonzero().squeeze(1)
    inputs = {"input_ids": ids, "attention_mask": mask}
    return inputs, at, target.flatten()[at], at // width
