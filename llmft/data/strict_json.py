"""JSON as it was meant: an object that has a key twice is refused, not read by its last one.

So are brackets inside brackets without end: what walks through a record would run out of stack.
"""

from __future__ import annotations

import json
from typing import Any

MOST_DEEP = 128
"""Brackets inside brackets, as serde_json and others have it; no conversation has as many."""


class KeyTwiceError(ValueError):
    """An object of JSON has a key twice; Python's parser would keep the last one."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key '{key}' is there twice in one object")


def strict_json(text: str) -> Any:
    """Return the value of JSON text; ValueError where it is none, KeyTwiceError among them."""
    try:
        value = _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    if text.count("[") + text.count("{") > MOST_DEEP:
        _refuse_deep(value)
    return value


def strict_cell(text: str) -> Any:
    """Return the value of JSON text that stands in a cell; ValueError as `strict_json`.

    ValueError, too, where a text in it holds half of a surrogate pair, which no tokenizer takes.
    """
    value = strict_json(text)
    if "\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            what = "a text holds half of a surrogate pair (an escape such as \\ud800)"
            raise ValueError(what) from error
    return value


_TOO_DEEP = f"brackets inside brackets, more than {MOST_DEEP} deep"


def _refuse_deep(value: Any) -> None:
    level = [value]
    for _ in range(MOST_DEEP + 1):
        held = [each for each in level if isinstance(each, dict | list)]
        level = [one for each in held for one in (each.values() if type(each) is dict else each)]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


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
