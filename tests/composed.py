"""A stage's context made of a few parts, for tests of what asks for no more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

PARTS = {
    "data": ("rows", "held_out", "encode", "encode_pairs", "encode_prompts",
             "encode_unpaired", "encode_classification", "max_length"),
    "models": (
        "model", "tokenizer", "shares_prompts", "reference", "reference_model", "load_stage",
        "starts_as_reference", "precision", "other_model",
    ),
    "sampler": ("generate", "sample", "decode"),
    "log": ("note", "progress", "add_samples"),
}  # fmt: skip


def composed(**given: Any) -> Any:
    """Return a context that has what is given, each where a StageContext has it."""
    context = SimpleNamespace(**{part: SimpleNamespace() for part in PARTS})
    where = {name: part for part, names in PARTS.items() for name in names}
    for name, value in given.items():
        setattr(getattr(context, where[name]) if name in where else context, name, value)
    return context
