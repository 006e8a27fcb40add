"""A scalar head: one number from the last token of a text, as a reward model gives it.

A stage that produces a `reward_model` adds this head, so that every other may ask for rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llmft.api import Encoded
from llmft.training.forward import last_hidden

NAME = "score"  # as in transformers' sequence classifiers
FILE = "head.safetensors"


def add_score_head(model: Any) -> None:
    """Add a trainable scalar head without bias, float32, drawn from torch's random state."""
    width = model.get_output_embeddings().weight.shape[-1]
    head = nn.Linear(width, 1, bias=False, dtype=torch.float32)
    # As Stiennon et al. 2020 have it: a variance of 1 / (d + 1).
    nn.init.normal_(head.weight, std=(width + 1) ** -0.5)
    model.add_module(NAME, head.to(next(model.parameters()).device))


def save_score_head(model: Any, folder: Path) -> None:
    """Write the head into a folder."""
    weight = getattr(model, NAME).weight.detach().cpu().contiguous()
    save_file({f"{NAME}.weight": weight}, folder / FILE)


def load_score_head(model: Any, folder: Path) -> None:
    """Add the head that `save_score_head` wrote."""
    add_score_head(model)
    with torch.no_grad():
        getattr(model, NAME).weight.copy_(load_file(folder / FILE)[f"{NAME}.weight"])


def rewards(
    model: Any, rows: Sequence[Encoded], shared: Sequence[tuple[int, int]] | None = None
) -> torch.Tensor:
    """Return the reward of each row, shape (B,), float32, in the units the head was trained in.

    model: one with a scalar head, such as `StageContext.load_stage` gives for a reward model.
    shared: as for `label_nll`.
    Raises ValueError where the model has no such head.
    """
    head = getattr(model, NAME, None)
    if not isinstance(head, nn.Linear):
        raise ValueError("the model has no scalar head: it is no reward model")
    hidden_BD = last_hidden(model, rows, shared)
    with torch.autocast(hidden_BD.device.type, enabled=False):
        values: torch.Tensor = head(hidden_BD.float()).squeeze(-1)
    return values
