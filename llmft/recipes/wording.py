"""What a rejected value is told: pydantic's errors in a recipe's words."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from llmft.api.settings import Name
from llmft.recipes.scalar import scalar
from llmft.recipes.tree import shown
from llmft.system.nearest import did_you_mean

Error = dict[str, Any]
Answer = tuple[str, str, str]
"""A code, what is wrong, the suggested fix."""

_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "dict_type": "a block of keys",
    "mapping_type": "a block of keys",
    "model_type": "a block of settings",
    "model_attributes_type": "a block of settings",
    "dataclass_type": "a block of settings",
    "is_instance_of": "a block of settings",
    "none_required": "nothing",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
    "multiple_of": ("a multiple of", "multiple_of"),
}
_PLAIN = re.compile(r"[\w.][\w./+, -]*")  # what needs no quotes in a list
_NAME_PATTERN = next(
    part.pattern
    for part in Name.__metadata__[0].metadata  # type: ignore[attr-defined]
    if hasattr(part, "pattern")
)


def answer(errors: Sequence[Error], written: str, field: FieldInfo | None) -> Answer:
    """Return what to say about one value; a union's members may each have an error about it."""
    wanted = list(dict.fromkeys(_WANTED[e["type"]] for e in errors if e["type"] in _WANTED))
    if len(wanted) == len({e["type"] for e in errors}) and wanted:
        return _wrong_type(wanted, errors[0]["input"], written, field)
    # A union's member that took the type and refused the value says more than one that did not.
    error = next(e for e in errors if e["type"] not in _WANTED)
    if error["type"] == "literal_error":
        patterns = [e["ctx"]["pattern"] for e in errors if e["type"] == "string_pattern_mismatch"]
        others = [*wanted, *(f"text that matches {pattern}" for pattern in patterns)]
        return _choice(error["input"], written, field, others)
    return _single(error, written, field)


def _single(error: Error, written: str, field: FieldInfo | None) -> Answer:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _BOUNDS:
        word, key = _BOUNDS[kind]
        what = f"must be {word} {_bound(context[key])}, got {written}"
        return "E023", what, _range(field)
    if kind == "finite_number":
        return "E023", f"must be a finite number, got {written}", _range(field)
    if kind == "string_pattern_mismatch":
        if context.get("pattern") == _NAME_PATTERN:
            what = f"must be letters, digits, '-' and '_', 64 at most, got {written}"
            return "E028", what, "write a name such as sft-1"
        return "E028", f"must match {context.get('pattern')}, got {written}", ""
    if kind in ("string_too_short", "string_too_long", "too_short", "too_long"):
        return _length(kind, context, written)
    return "E022", str(error.get("msg", "cannot be used")).lower() + f", got {written}", ""


def _wrong_type(wanted: list[str], value: Any, written: str, field: FieldInfo | None) -> Answer:
    what = f"expected {' or '.join(wanted)}, got {_kind(value, written)}"
    return "E022", what, _type_fix(wanted, value, written, field)


def _kind(value: Any, written: str) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f"the text {written}"
    if isinstance(value, list | dict | BaseModel):
        return "a list" if isinstance(value, list) else "a block"
    return written


def _type_fix(wanted: list[str], value: Any, written: str, field: FieldInfo | None) -> str:
    if value is None:
        if field is not None and field.is_required():
            return "write a value"
        default = field.default if field is not None else None
        named = (
            f" for the default, {shown(default)}" if isinstance(default, int | float | str) else ""
        )
        return "write a value, or remove the key" + named
    if "true or false" in wanted:
        return "write true or false"
    if isinstance(value, str) and {"a number", "a whole number"} & set(wanted):
        number = scalar(value.strip())
        if isinstance(number, int | float) and not isinstance(number, bool):
            return f"write {shown(number)} without quotes"
    if isinstance(value, float) and "a whole number" in wanted and value.is_integer():
        return f"write {shown(int(value))}"
    if "text" in wanted and isinstance(value, bool | int | float):
        return f'put it in quotes: "{written}"'
    if "a list" in wanted and isinstance(value, str | int | float):
        return _as_list(value)
    return ""


def _as_list(value: str | int | float) -> str:
    if not isinstance(value, str):
        return f"write a list: [{value}]"
    text = shown(value)[1:-1]
    return f"write a list: [{text if _PLAIN.fullmatch(text) else json.dumps(text)}]"


def _choice(value: Any, written: str, field: FieldInfo | None, others: Sequence[str]) -> Answer:
    """Answer a value that is none of a Literal's; `others` is what else a union would take."""
    choices = literal_choices(field.annotation) if field else []
    text = ", ".join(str(choice) for choice in (*choices, *others))
    near = did_you_mean(value, [c for c in choices if isinstance(c, str)]) \
        if isinstance(value, str) else ""  # fmt: skip
    if not near and isinstance(value, str) and "a list" in others:
        near = _as_list(value)
    if len(choices) == 1 and not others:
        return "E025", f"must be {text}, got {written}", f"write {text}"
    return "E025", f"must be one of {text}; got {written}", near or "use one of these"


def literal_choices(annotation: Any) -> list[Any]:
    """Return the choices of a Literal, wherever in an annotation it stands."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for inner in get_args(annotation) for choice in literal_choices(inner)]


def _length(kind: str, context: Error, written: str) -> Answer:
    unit = "characters" if kind.startswith("string") else "items"
    if kind.endswith("short"):
        least = context["min_length"]
        if least == 1:
            return "E023", "must not be empty", f"write at least one {unit[:-1]}"
        return "E023", f"must have at least {least} {unit}, got {written}", ""
    return "E023", f"must have at most {context['max_length']:,} {unit}", "shorten it"


def _range(field: FieldInfo | None) -> str:
    """Return the whole range of a field: "give a number above 0 and at most 10"."""
    if field is None:
        return ""
    parts = []
    for key, word in (("gt", "above"), ("ge", "of at least"), ("lt", "below"), ("le", "at most")):
        for bound in (getattr(part, key, None) for part in field.metadata):
            if bound is not None:
                parts.append(f"{word} {_bound(bound)}")
    whole = "a whole number" if int in _members(field.annotation) else "a number"
    return f"give {whole} {' and '.join(parts)}" if parts else ""


def _bound(bound: Any) -> str:
    if isinstance(bound, float) and bound.is_integer() and bound < 1e9:
        bound = int(bound)
    return f"{bound:,}" if isinstance(bound, int) else str(bound)


def _members(annotation: Any) -> tuple[Any, ...]:
    is_union = get_origin(annotation) is Union or "UnionType" in type(annotation).__name__
    return get_args(annotation) if is_union else (annotation,)
