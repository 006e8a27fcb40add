"""NEFTune: uniform noise on the embeddings of the text that is trained on (Jain et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def noisy_embeddings(model: Any, alpha: float | None) -> Iterator[None]:
    """Add noise to a model's embeddings while it is in training mode; None: leave them.

    Each number gets one from the interval of alpha / sqrt(L D), of a row of L tokens and D wide
    embeddings. As transformers' `neftune_noise_alpha`, but that L is the row's own length: padding
    and the rows beside it change nothing.
    """
    if not alpha:
        yield
        return
    seen: dict[str, Any] = {}

    def look(_: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        seen.clear()
        seen.update(inputs)

    def add_noise(module: Any, _: Any, embedded_BTD: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return embedded_BTD
        _, tokens, width = embedded_BTD.shape
        noise = torch.empty_like(embedded_BTD).uniform_(-1, 1)
        length = row_lengths(seen, tokens).to(noise.device)
        return embedded_BTD + noise * (alpha / (length * width).sqrt()).to(noise.dtype)

    hooks = [
        model.register_forward_pre_hook(look, with_kwargs=True),
        model.get_input_embeddings().register_forward_hook(add_noise),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def row_lengths(inputs: Mapping[str, Any], tokens: int) -> torch.Tensor:
    """Return the length of each token's row, shape (1, T, 1) or (B, 1, 1), float32.

    inputs: a model's, padded with a mask, or end to end with boundaries, T `tokens` in all. To a
    row that shares the start of another, that start is counted too.
    """
    bounds = inputs.get("cu_seq_lens_q")
    if bounds is not None:
        own = bounds.diff().long()
        shared = inputs.get("shared_prefix")
        whole = own if shared is None else own + shared[:, 1].to(own.device)
        found: torch.Tensor = whole.repeat_interleave(own, output_size=tokens)
        return found[None, :, None].float()
    mask = inputs.get("attention_mask")
    if mask is None:
        return torch.full((1, 1, 1), float(tokens))
    counts: torch.Tensor = mask.sum(1)
    return counts[:, None, None].float()
