"""How a base model's weights lie in their files, read from the files' headers."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

from llmft.api.settings import ModelSource
from llmft.modeling.base_model import BaseModel

_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number."""
NEIGHBOURS = 65_536
"""Linux's fault_around_bytes."""


def stored_dtype(base: BaseModel) -> str:
    """Return the type of most of the stored numbers; that of the config where no file is here."""
    folder = Path(base.path)
    sizes: dict[str, int] = {}
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                sizes[entry["dtype"]] = sizes.get(entry["dtype"], 0) + end - start
    if sizes:
        return _NAMES.get(max(sizes, key=lambda name: sizes[name]), "other")
    return str(getattr(base.config, "dtype", None) or base.source.dtype).removeprefix("torch.")


def unread_bytes(model: Any, ids: int) -> int:
    """Return the bytes of an input embedding, used as it lies in its file, that are never read.

    ids: how many different tokens the rows have. Linux brings a page's neighbours in with it.
    """
    table = model.get_input_embeddings().weight
    if table is model.get_output_embeddings().weight:
        return 0
    size: int = table.numel() * table.element_size()
    row = size // len(table)
    return max(0, size - ids * (row + NEIGHBOURS))


def mapped_bytes(model: Any, source: ModelSource, stored: str) -> int:
    """Return the bytes of the weights' files that stay in sight of the process beside the weights.

    Where some tensors are used as they lie in the file, it stays open, and with it the pages of
    those that were read once, to be quantised. The kernel may drop them.
    """
    if stored != source.dtype:
        return 0
    numbers = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            numbers += prod(state.shape)
        elif getattr(parameter, "CB", None) is not None:
            numbers += parameter.numel()
    return numbers * WIDTHS.get(stored, 4)
