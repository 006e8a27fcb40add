"""A trained model's folder, as transformers writes and reads it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

NAMES = "llmft_full_names"
"""The attribute of a model that holds the names of its own weights and buffers."""


def remember_names(model: Any) -> None:
    """Keep what the model's state holds, before an alignment adds a head to it."""
    setattr(model, NAMES, frozenset(model.state_dict().keys()))


def save_model(model: Any, folder: Path, max_shard_size: str) -> None:
    """Write the model, without what was added to it, as plain transformers loads it."""
    own = getattr(model, NAMES, None)
    state = model.state_dict()
    state = {name: t for name, t in state.items() if own is None or name in own}
    kept = model.generation_config
    model.generation_config = _as_meant(kept)
    try:
        model.save_pretrained(folder, state_dict=state, max_shard_size=max_shard_size)
    finally:
        model.generation_config = kept


def _as_meant(generation: Any) -> Any:
    """Return a generation config that can be saved.

    Many published models have a temperature or top_p without `do_sample`, which transformers reads
    but refuses to write: they are meant to be sampled from.
    """
    if generation is None:
        return None
    try:
        generation.validate(strict=True)
    except ValueError:
        generation = copy.deepcopy(generation)
        generation.do_sample = True
    return generation


def load_weights(model: Any, folder: Path) -> None:
    """Put the weights in a folder in the place of the model's own, one after another.

    Raises ValueError where a weight is missing, or has another shape.
    """
    import torch

    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    loaded, report = type(model).from_pretrained(
        folder,
        config=copy.deepcopy(model.config),
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if missing := sorted(map(str, report["missing_keys"])):
        raise ValueError(f"'{folder}' has no weight '{missing[0]}'")
    theirs = dict(loaded.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            new = theirs.pop(name)
            if new.shape != parameter.shape:
                raise ValueError(f"'{name}' in '{folder}' is {list(new.shape)}")
            parameter.data = new.data.to(parameter.device, parameter.dtype)
            del new
        buffers = dict(loaded.named_buffers())
        for name, buffer in model.named_buffers():
            if name in buffers and buffers[name].shape == buffer.shape:
                buffer.copy_(buffers[name])
