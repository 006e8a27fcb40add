"""The fields of a settings class as a reader wants them: name, type, default, bounds, meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from llmft.api import StageRef
from llmft.recipes.methods import nested_kind

_WORDS = {"integer": "int", "number": "float", "string": "str", "boolean": "bool", "null": "null"}
_SIZES = (("Length", "characters"), ("Items", "items"))
Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FieldRow:
    """One key of a recipe's block; a key of a block within it is written `block.key`.

    default: as YAML would write it; empty where the field is required or a block of its own.
    """

    key: str
    type: str
    default: str
    required: bool
    bounds: str
    description: str


def fields(config: type[BaseModel]) -> list[FieldRow]:
    """Return a row for each field of a settings class, those of nested blocks included."""
    return list(_rows(config, ""))


def _rows(config: type[BaseModel], prefix: str) -> Iterator[FieldRow]:
    schema = config.model_json_schema()
    for name, field in config.model_fields.items():
        shape, block = schema["properties"][name], _block(field.annotation)
        references = [mark for mark in field.metadata if isinstance(mark, StageRef)]
        yield FieldRow(
            key=prefix + name,
            type=f"an earlier stage that produces {references[0].produces}"
            if references
            else _kinded(_type(shape, schema.get("$defs", {})), field.annotation),
            default="" if block else _default(field),
            required=field.is_required(),
            bounds=", ".join(_bounds(shape)),
            description=field.description or "",
        )
        if block is not None:
            yield from _rows(block, f"{prefix}{name}.")


def _kinded(said: str, annotation: Any) -> str:
    """Return what is said of a block with the kind of method that is chosen there."""
    kind = nested_kind(annotation)
    return said.replace("block", f"block ({kind} method)") if kind else said


def _block(annotation: Any) -> type[BaseModel] | None:
    """Return the class of a nested block of settings, where a field is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType):
        return next(filter(None, map(_block, get_args(annotation))), None)
    return None


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    return json.dumps(to_jsonable_python(field.get_default(call_default_factory=True)))


def _type(field: Schema, defs: Schema) -> str:
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_type(option, defs) for option in field["anyOf"]))
    if "$ref" in field:
        target = defs[field["$ref"].rpartition("/")[2]]
        return "block" if "properties" in target else _type(target, defs)
    if "const" in field:
        return str(field["const"])
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}), defs)}"
    if field.get("type") == "object":
        values = field.get("additionalProperties")
        return f"mapping to {_type(values, defs)}" if isinstance(values, dict) else "mapping"
    return _WORDS.get(field.get("type", ""), "any")


def _bounds(field: Schema) -> Iterator[str]:
    for option in field.get("anyOf", [field]):
        low, high = option.get("minimum"), option.get("maximum")
        if low is not None and high is not None:
            yield f"{low:.12g} to {high:.12g}"
        else:
            ends = [
                words.format(option[key])
                for key, words in (
                    ("minimum", "at least {:.12g}"),
                    ("exclusiveMinimum", "above {:.12g}"),
                    ("maximum", "at most {:.12g}"),
                    ("exclusiveMaximum", "below {:.12g}"),
                )
                if key in option
            ]
            yield from [" and ".join(ends)] if ends else []
        for size, unit in _SIZES:
            low, high = option.get(f"min{size}", 0), option.get(f"max{size}")
            if high is not None:
                yield f"{low} to {high} {unit}"
            elif low:
                yield f"at least {low} {unit}"
        if "pattern" in option:
            yield f"matches {option['pattern']}"
        if isinstance(option.get("items"), dict):
            for bound in _bounds(option["items"]):
                yield f"each {bound}"
