"""Token rows as a model's inputs, and where their labels are predicted.

Rows are laid end to end where the model's attention keeps them apart (no padding is computed), and
padded on the right otherwise.
"""

from __future__ import annotations

from array import array
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
    labels: list[int] = []
    bounds = [0]
    lengths: list[int] = []
    prefixes: list[tuple[int, int]] = []
    for number, row in enumerate(rows):
        earlier, n = shared[number] if shared else (0, 0)
        prefixes.append((bounds[earlier], n))
        ids.extend(row.input_ids[n:])
        labels.extend(row.labels)
        lengths.append(len(row.labels))
        bounds.append(len(ids))
    # Of each token of each row, a shared start's too: its row, and its place within that.
    length_B, prefix_B2 = torch.tensor(lengths), torch.tensor(prefixes)
    row_S = torch.repeat_interleave(torch.arange(len(rows)), length_B)
    place_S = torch.arange(len(labels)) - (length_B.cumsum(0) - length_B)[row_S]
    before_S, shared_S = prefix_B2[row_S].unbind(1)
    start_S = torch.tensor(bounds[:-1])[row_S] - shared_S
    label_S = _numbers(labels)
    learnt = ((label_S != IGNORED) & (place_S > 0)).nonzero().squeeze(1)
    at_S = torch.where(place_S > shared_S, start_S, before_S) + place_S - 1
    inputs = {
        "input_ids": _numbers(ids).unsqueeze(0),
        "position_ids": place_S[place_S >= shared_S].unsqueeze(0),
        "cu_seq_lens_q": torch.tensor(bounds, dtype=torch.int32),
    }
    if shared:
        inputs["shared_prefix"] = prefix_B2
    return inputs, at_S[learnt], label_S[learnt], row_S[learnt]


def _numbers(numbers: Sequence[int]) -> torch.Tensor:
    """Return what `torch.tensor` does of whole numbers, several times as fast."""
    if not numbers:
        return torch.empty(0, dtype=torch.long)
    return torch.frombuffer(array("q", numbers), dtype=torch.long)


def padded(rows: Sequence[Encoded]) -> _Laid:
    """Return model inputs of shape (B, T), padded on the right and masked, and where labels are."""
    width = max(len(row.input_ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    target = torch.full((len(rows), width), IGNORED)
    for number, row in enumerate(rows):
        n = len(row.input_ids)
        ids[number, :n] = _numbers(row.input_ids)
        mask[number, :n] = 1
        target[number, : n - 1] = _numbers(row.labels)[1:]
    at = (target != IGNORED).flatten().nonzero().squeeze(1)
    inputs = {"input_ids": ids, "attention_mask": mask}
    return inputs, at, target.flatten()[at], at // width
