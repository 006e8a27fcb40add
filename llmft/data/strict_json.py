"""JSON as it was meant: an object that has a key twice is refused, not read by its last one."""

from __future__ import annotations

import json
from typing import Any


class KeyTwiceError(ValueError):
    """An object of JSON has a key twice; Python's parser would keep the last one."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key '{key}' is there twice in one object")


def strict_json(text: str) -> Any:
    """Return the value of JSON text; ValueError where it is none, KeyTwiceError among them."""
    return _DECODER.decode(text)


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise KeyTwiceError(key)
            seen.add(key)
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object_of)
