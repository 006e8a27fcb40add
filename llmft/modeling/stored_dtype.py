"""The type of the numbers in a model's own files, which `dtype: auto` loads the base in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
KNOWN = tuple(_NAMES.values())
"""The types that a base is loaded in."""


def stored_dtype(path: str, config: Any) -> str:
    """Return the type of most of the stored numbers; that of the config where no file is here.

    'other' where it is none that a base is loaded in, 'unknown' where nothing says.
    """
    folder = Path(path)
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
    return said_dtype(config) or "unknown"


def said_dtype(config: Any) -> str:
    """Return the type that a config names, if it names one that a base is loaded in; else ''."""
    name = str(getattr(config, "dtype", None)).removeprefix("torch.")
    return name if name in KNOWN else ""
