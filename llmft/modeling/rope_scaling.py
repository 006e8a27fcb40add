"""Rotary positions, stretched for rows that are longer than those the base was trained on."""

from __future__ import annotations

from typing import Any

from llmft.api.errors import EnvironmentFault
from llmft.api.model_settings import RopeScaling

_KEPT = ("rope_theta", "partial_rotary_factor")


def stretch(config: Any, asked: RopeScaling) -> None:
    """Change a model's config so that its positions are stretched; transformers does the rest.

    `max_position_embeddings` becomes `original_max_position_embeddings` times `factor`, where that
    is more. Raises EnvironmentFault (E201) where the architecture has no rotary positions, or
    several kinds of them, and where they are stretched already and the recipe does not say from
    where.
    """
    text = config.get_text_config()
    before = getattr(text, "rope_parameters", None)
    positions = getattr(text, "max_position_embeddings", None)
    if not isinstance(before, dict) or "rope_theta" not in before or not positions:
        raise EnvironmentFault(
            "E201",
            f"the positions of '{config.model_type}' cannot be stretched: its config has not one"
            " kind of rotary positions for all layers",
            fix="drop model.rope_scaling, or take a model of another architecture",
        )
    kind = before.get("rope_type", "default")
    if kind != "default" and asked.original_max_position_embeddings is None:
        raise EnvironmentFault(
            "E201",
            f"the base's positions are stretched already ({kind}, factor {before.get('factor')})",
            fix="drop model.rope_scaling, or give original_max_position_embeddings, the tokens that"
            " the base was first trained on",
        )
    original = asked.original_max_position_embeddings or positions
    given = asked.model_dump(exclude_none=True, exclude={"original_max_position_embeddings"})
    kept = {name: before[name] for name in _KEPT if name in before}
    if asked.rope_type != "linear":
        given["original_max_position_embeddings"] = original
    text.rope_parameters = {**kept, **given}
    text.max_position_embeddings = max(positions, int(original * asked.factor))


def positions_of(config: Any) -> dict[str, Any]:
    """Return what a plain config of the same base needs to have the same positions, by its keys."""
    text = config.get_text_config()
    names = ("rope_parameters", "max_position_embeddings")
    return {name: getattr(text, name) for name in names}
