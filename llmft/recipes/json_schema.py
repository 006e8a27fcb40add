"""The JSON Schema of a whole recipe, for editors: the plugins' own keys are in it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from llmft.api.errors import PluginError
from llmft.api.kinds import Kind
from llmft.registry.contract import KINDS

if TYPE_CHECKING:
    from llmft.registry.registry import Registry

_BASES = tuple(contract.config.__name__ for contract in KINDS.values())


def recipe_schema(registry: Registry) -> dict[str, Any]:
    """Return the schema of every recipe that the installed methods allow.

    A method that cannot be loaded is left out: a recipe that names it would not run.
    """
    from llmft.recipes.recipe import Recipe

    schema = Recipe.model_json_schema()
    defs = schema["$defs"]
    for kind, contract in KINDS.items():
        # The recipe knows the base class of a kind only; in its place stands one of the methods.
        methods = [_method(registry, kind, name, defs) for name in _usable(registry, kind)]
        defs[contract.config.__name__] = {"oneOf": methods} if methods else False
    head: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return head | schema | {"title": "llmft recipe"}


def _usable(registry: Registry, kind: Kind) -> list[str]:
    usable = []
    for name in registry.names(kind):
        with suppress(PluginError):
            registry.method(kind, name)
            usable.append(name)
    return usable


def _method(registry: Registry, kind: Kind, name: str, defs: dict[str, Any]) -> dict[str, str]:
    """Enter a method's settings under a name of their own, and return the reference to them."""
    cls = registry.method(kind, name)
    own = f"{kind}.{name}"
    block = cls.Config.model_json_schema(ref_template="#/$defs/" + own + ".{model}")
    for nested, definition in block.pop("$defs", {}).items():
        defs[f"{own}.{nested}"] = definition
        if nested in _BASES:  # a method chosen inside this one: any that is installed
            defs[f"{own}.{nested}"] = {"$ref": f"#/$defs/{nested}"}
    says = block["properties"]["method"].get("description", "which method")
    block["properties"]["method"] = {"const": name, "description": says}
    block["required"] = sorted({"method", *block.get("required", ())})
    block["title"] = f"{kind} {name}"
    block["description"] = (cls.__doc__ or "").strip().partition("\n")[0]
    defs[own] = block
    return {"$ref": f"#/$defs/{own}"}
