"""`llmft show METHOD`."""

from __future__ import annotations

import inspect
from dataclasses import asdict, replace
from typing import Any, get_args

from llmft.api.errors import RecipeError
from llmft.api.kinds import Kind
from llmft.cli.commands.fields import fields
from llmft.cli.commands.output import prose, table
from llmft.registry.registry import Registry
from llmft.system.nearest import did_you_mean


def describe(method: str, kind: Kind | None) -> list[dict[str, Any]]:
    """Return what is to be known of a method, once for each kind that has one of that name.

    Raises RecipeError for a name that does not exist, PluginError for a broken plugin.
    """
    registry = Registry.discover()
    asked: list[Kind] = [kind] if kind else list(get_args(Kind))
    names = {each: registry.names(each) for each in asked}
    found = [each for each in asked if method in names[each]]
    if not found:
        if method in registry.names("plugin"):
            raise RecipeError(
                "E504",
                f"'{method}' is a cross-cutting plugin, which has no settings to show",
                fix=f"write 'plugins: [{method}]' in a recipe to let it act",
            )
        have = sorted({name for each in asked for name in names[each]})
        raise RecipeError(
            "E504",
            f"no {kind or 'method'} is called '{method}' (have: {', '.join(have) or 'none'})",
            fix=did_you_mean(method, have) or "llmft list-plugins shows what is installed",
        )
    return [_described(registry, each, method) for each in found]


def _described(registry: Registry, kind: Kind, method: str) -> dict[str, Any]:
    cls = registry.method(kind, method)
    rows = [
        replace(row, type=method, bounds="") if row.key == "method" else row
        for row in fields(cls.Config)
    ]
    return {
        "kind": kind,
        "method": method,
        "doc": inspect.cleandoc(cls.__doc__ or ""),
        "fields": [asdict(row) for row in rows],
        "capabilities": cls.capabilities(),
    }


def as_text(methods: list[dict[str, Any]]) -> str:
    """Return each method's documentation, its settings as a table, and its capabilities."""
    return "\n\n".join(_text(method) for method in methods)


def _text(method: dict[str, Any]) -> str:
    rows = [
        (row["key"], row["type"], "required" if row["required"] else row["default"], row["bounds"],
         row["description"])
        for row in method["fields"]
    ]  # fmt: skip
    parts = [
        f"{method['kind']} '{method['method']}'",
        prose(method["doc"]),
        table(("key", "type", "default", "bounds", "meaning"), rows),
    ]
    if method["capabilities"]:
        able = [(name, _words(value)) for name, value in method["capabilities"].items()]
        parts.append(table(("capability", "value"), able))
    return "\n\n".join(part for part in parts if part)


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
