"""Embedded default: a small model, its knowledge, and data sets about that knowledge."""

from pathlib import Path

__all__ = ["available", "locate"]

_HERE = Path(__file__).parent
_NAMES = (
    "model",
    "data/trivia_train.jsonl",
    "data/trivia_eval.jsonl",
    "data/preferences_train.jsonl",
    "data/preferences_eval.jsonl",
    "data/remarks_train.jsonl",
    "data/remarks_eval.jsonl",
    "data/manners_train.jsonl",
    "data/manners_eval.jsonl",
    "data/prompts.jsonl",
)


def available() -> tuple[str, ...]:
    """Return every name that `locate` knows."""
    return _NAMES


def locate(name: str) -> Path:
    """Return the path of an embedded model folder or data file.

    Raises ValueError listing what there is if nothing has that name.
    """
    if name not in _NAMES:
        raise ValueError(f"nothing embedded is called '{name}' (have: {', '.join(_NAMES)})")
    return _HERE / name
