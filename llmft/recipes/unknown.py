"""What an unknown key is told: what it is called here, where it belongs, or what it is near to."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel

from llmft.recipes.foreign import FOREIGN, REMARKS
from llmft.recipes.methods import BASES
from llmft.recipes.recipe import Stage
from llmft.recipes.tree import KeyPath, dotted, visible
from llmft.system.nearest import did_you_mean

STAGE_KEYS = ("train", "adapter", "alignment", "task", "data", "evaluate")
# Cyrillic and Greek letters that look like Latin ones.
_LOOKALIKES = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u03bf\u03b1\u03c1\u03bd",
    "aeopcyxijsoapv",
)

Models = Mapping[KeyPath, type[BaseModel]]
"""The model of every block of a recipe, the chosen methods' included."""


def model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model that an annotation holds, wherever in it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := model_in(inner))), None)


_A_STAGE: dict[KeyPath, type[BaseModel]] = {("stages", 0): Stage} | {
    ("stages", 0, name): inner
    for name, field in Stage.model_fields.items()
    if (inner := model_in(field.annotation))
}


def answer_unknown(path: KeyPath, models: Models) -> tuple[str, str, str]:
    """Return code, what and fix for a key that its block does not have."""
    key, block = str(path[-1]), path[:-1]
    valid = list(models[block].model_fields) if block in models else []
    label = visible(key)[:80]
    if odd := _odd_character(key):
        latin = unicodedata.normalize("NFKC", key.translate(_LOOKALIKES))
        plain = "".join(c for c in latin if c.isascii() and c.isprintable())
        fix = did_you_mean(plain, valid)
        if plain in valid:
            fix = f"type '{plain}' again, in plain letters"
        return "E027", f"unknown key '{label}': {odd}", fix
    return "E020", f"unknown key '{label}'", _suggested_fix(key, block, valid, models)


def _suggested_fix(key: str, block: KeyPath, valid: list[str], models: Models) -> str:
    if key.partition(":")[0] in valid:
        return "write a space after the colon"
    if "." in key:
        return "write blocks inside each other, not a path with dots"
    plain = key.replace("-", "_").lower()
    if plain in valid:
        return f"write '{plain}'"
    if remark := REMARKS.get(plain):
        return remark
    if homes := _homes(plain, block, models):
        return f"it belongs {' or '.join(homes)}"
    if ours := FOREIGN.get(plain):
        return _translated(ours, block, models)
    if near := did_you_mean(plain, valid):
        return near
    return f"the keys here are {', '.join(valid)}" if valid else ""


def _translated(ours: str, block: KeyPath, models: Models) -> str:
    section, _, name = ours.rpartition(".")
    stage = _stage_of(block)
    where: KeyPath = tuple(section.split(".")) if section else ()
    of_stage = bool(where) and where[0] in STAGE_KEYS
    full = (*stage, *where) if of_stage and stage else where
    chosen = models.get(full)
    if chosen and chosen not in BASES and name not in chosen.model_fields:
        return f"it is called '{name}' here, which the method under {dotted(full)} does not have"
    if full == block and not (of_stage and not stage):
        return f"it is called '{name}' here"
    if of_stage and not stage:
        return f"it is called '{name}' here, under {section} in a stage"
    return f"it is called '{name}' here, {_under(full)}"


def _under(path: KeyPath) -> str:
    return f"under {dotted(path)}" if path else "at the top of the recipe"


def _homes(key: str, block: KeyPath, models: Models) -> list[str]:
    """Return the other blocks of the recipe that have this key; of stages, only its own."""
    stage = _stage_of(block)
    homes = []
    if not any(map(_stage_of, models)):  # a file without stages: another tool's, or half written
        models = {**models, **_A_STAGE}
    for path, model in models.items():
        foreign_stage = bool(stage) and _stage_of(path) not in ((), stage)
        if path == block or foreign_stage or key not in model.model_fields or key == "method":
            continue
        if not stage and _stage_of(path):
            homes.append(f"under {dotted(path[2:])} in a stage" if path[2:] else "in a stage")
        else:
            homes.append(_under(path))
    return list(dict.fromkeys(homes))[:3]


def _stage_of(path: KeyPath) -> KeyPath:
    return path[:2] if len(path) >= 2 and path[0] == "stages" else ()


def _odd_character(key: str) -> str:
    """Return a description of the first character that is no plain letter, digit or sign."""
    for position, character in enumerate(key, start=1):
        if not (character.isascii() and character.isprintable()):
            name = unicodedata.name(character, "a control character")
            return f"character {position} is U+{ord(character):04X} ({name})"
    return ""
