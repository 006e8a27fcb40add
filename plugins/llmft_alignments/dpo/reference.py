"""The reference's log-likelihoods: computed once a row before training, and kept beside the run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from llmft.api import Encoded, EncodedPair, StageContext
from llmft.toolkit import dealing_out, load_tensors, on_rank_zero, save_tensors
from llmft_alignments.pairs import CHECKED, over_batches, pair_logps, pair_nll, row_logps

if TYPE_CHECKING:
    import torch

FILE = "reference.safetensors"
SAMPLED = 4096
Item = TypeVar("Item", bound=EncodedPair | Encoded)


def reference_logps(
    context: StageContext, pairs: Sequence[EncodedPair], file: str = FILE
) -> torch.Tensor:
    """Return the reference's summed log-likelihood of each answer, shape (P, 2), float32.

    file: where they are kept, in the stage's folder.
    """
    model, share = context.models.model, context.models.shares_prompts
    return _kept(context, pairs, "logps_P2", lambda some: pair_logps(model, some, share), file)


def reference_row_logps(
    context: StageContext, rows: Sequence[Encoded], file: str = FILE
) -> torch.Tensor:
    """Return the reference's summed log-likelihood of each row's answer, shape (R,), float32."""
    model = context.models.model
    return _kept(context, rows, "logps_R", lambda some: row_logps(model, some), file)


def reference_token_logps(
    context: StageContext, pairs: Sequence[EncodedPair]
) -> list[torch.Tensor]:
    """Return for each pair the reference's log-likelihood of every answer token, chosen first."""
    import torch

    model, share = context.models.model, context.models.shares_prompts
    whole_N = _kept(context, pairs, "logps_N", lambda some: -pair_nll(model, some, share)[0])
    counts = [pair.chosen.n_labels + pair.rejected.n_labels for pair in pairs]
    return list(torch.split(whole_N, counts))


def _kept(
    context: StageContext,
    items: Sequence[Item],
    name: str,
    compute: Callable[[Sequence[Item]], torch.Tensor],
    file: str = FILE,
) -> torch.Tensor:
    path = context.folder / file
    with context.models.reference():
        key = reference_key(context.models.model, items)
        found = load_tensors(path, key) or {}
        logps = on_rank_zero(lambda: found.get(name))  # kept there, where a run is resumed
        if logps is None:
            with dealing_out():
                logps = over_batches(context, items, compute, "reference", first=CHECKED)
            save_tensors(path, {**found, name: logps}, key)
    return logps


def reference_key(model: Any, items: Sequence[EncodedPair | Encoded]) -> str:
    """Return a SHA-256 of what reference log-likelihoods depend on: base, adapter and token rows.

    Of every frozen tensor, at most 4,096 numbers spread over it are read, of a trained one all:
    another model or another start changes the key, and no base of gigabytes is read for it.
    """
    hasher = hashlib.sha256()
    for name, parameter in model.named_parameters():
        hasher.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        hasher.update(_numbers(parameter.detach(), whole=parameter.requires_grad))
    for item in items:
        ids = {k: v for k, v in asdict(item).items() if k in _OF_TOKENS}
        hasher.update(json.dumps(ids, sort_keys=True, default=str).encode())
    return hasher.hexdigest()


_OF_TOKENS = ("chosen", "rejected", "input_ids", "labels")


def _numbers(tensor: torch.Tensor, *, whole: bool) -> bytes:
    import torch

    flat = tensor.reshape(-1)
    step = 1 if whole else max(1, flat.numel() // SAMPLED)
    data: bytes = flat[::step].contiguous().cpu().view(torch.uint8).numpy().tobytes()
    return data
