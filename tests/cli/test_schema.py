"""The JSON Schema for editors: it takes what the loader takes, and knows the methods' own keys."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from llmft.cli.commands import shipped
from llmft.recipes.json_schema import recipe_schema
from llmft.registry.registry import Registry


@pytest.fixture
def schema(installed) -> dict[str, Any]:
    return recipe_schema(Registry.discover())


@pytest.fixture
def valid(schema):
    """Whether a recipe fits the schema: the keywords that it uses, and no others."""
    types = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool,
             "number": (int, float), "null": type(None)}  # fmt: skip
    notes = {"$schema", "$defs", "title", "description", "default"}

    def fits(value: Any, rule: Any) -> bool:
        return rule is True or (rule is not False and all(
            holds(value, rule, key, want) for key, want in rule.items() if key not in notes
        ))  # fmt: skip

    def holds(value: Any, rule: dict[str, Any], key: str, want: Any) -> bool:
        mapping = value if isinstance(value, dict) else {}
        number = isinstance(value, int | float)
        match key:
            case "$ref":
                return fits(value, schema["$defs"][want.removeprefix("#/$defs/")])
            case "oneOf":
                return sum(fits(value, each) for each in want) == 1
            case "anyOf":
                return any(fits(value, each) for each in want)
            case "const":
                return value == want
            case "enum":
                return value in want
            case "type":
                return isinstance(value, types[want]) and (want == "boolean") >= (
                    isinstance(value, bool)
                )
            case "required":
                return all(name in mapping for name in want)
            case "properties":
                return all(
                    fits(mapping[name], each) for name, each in want.items() if name in mapping
                )
            case "additionalProperties":
                others = set(mapping) - set(rule.get("properties", {}))
                return all(fits(mapping[name], want) if want else False for name in others)
            case "propertyNames":
                return all(fits(name, want) for name in mapping)
            case "items":
                return not isinstance(value, list) or all(fits(each, want) for each in value)
            case "minimum":
                return not number or value >= want
            case "maximum":
                return not number or value <= want
            case "exclusiveMinimum":
                return not number or value > want
            case "exclusiveMaximum":
                return not number or value < want
            case "minLength" | "minItems" | "minProperties":
                return number or value is None or len(value) >= want
            case "maxLength" | "maxItems" | "maxProperties":
                return number or value is None or len(value) <= want
            case "pattern":
                return not isinstance(value, str) or re.search(want, value) is not None
        raise AssertionError(f"the schema uses '{key}', which this test does not know")

    return lambda value: fits(value, schema)


def plain(path: Path) -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load(path)


def test_each_kind_is_one_of_the_installed_methods(schema):
    methods = [ref["$ref"] for ref in schema["$defs"]["TrackerConfig"]["oneOf"]]
    assert {"#/$defs/tracker.console", "#/$defs/tracker.jsonl"} <= set(methods)


def test_a_method_brings_its_own_keys_and_their_descriptions(schema):
    lora = schema["$defs"]["adapter.lora"]
    assert lora["properties"]["method"]["const"] == "lora"
    assert lora["properties"]["r"]["description"]
    assert lora["additionalProperties"] is False
    assert "method" in lora["required"]


def test_a_method_inside_a_method_is_one_of_the_installed_ones(schema, valid):
    judge = schema["$defs"]["task.rank"]["properties"]["judge"]["anyOf"][0]["$ref"]
    assert schema["$defs"][judge.removeprefix("#/$defs/")] == {"$ref": "#/$defs/RewardConfig"}
    rewards = [ref["$ref"] for ref in schema["$defs"]["RewardConfig"]["oneOf"]]
    assert {"#/$defs/reward.exact_match", "#/$defs/reward.length"} <= set(rewards)

    def recipe(judge):
        task = {"method": "rank", "samples": "collect", "judge": judge}
        stage = {"name": "rank", "task": task}
        return {"recipe": 1, "name": "a", "model": {"path": "m"}, "stages": [stage]}

    assert valid(recipe({"method": "length", "target": 5, "unit": "words"}))
    assert valid(recipe(None))
    for bad in (
        {"method": "length"},
        {"method": "length", "target": 0},
        {"method": "length", "target": 5, "rambling": 1},
        {"method": "no_such_method"},
        {"target": 5},
        "length",
    ):
        assert not valid(recipe(bad)), bad


def test_every_reference_leads_somewhere(schema):
    def references(node: Any):
        if isinstance(node, dict):
            if "$ref" in node:
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    names = {ref.removeprefix("#/$defs/") for ref in references(schema)}
    assert names
    assert names <= set(schema["$defs"])


def test_every_shipped_recipe_fits(valid):
    for item in shipped.recipes():
        assert valid(plain(item.path)), item.name


def test_mistakes_do_not_fit(valid, recipe):
    good = plain(Path(recipe))
    assert valid(good)
    for path, value in (
        (("stages", 0, "adapter", "method"), "no_such_method"),
        (("stages", 0, "adapter", "rr"), 4),
        (("stages", 0, "adapter", "r"), 0),
        (("stages", 0, "train", "lerning_rate"), 1e-4),
        (("seed",), "three"),
    ):
        bad = copy.deepcopy(good)
        block = bad
        for key in path[:-1]:
            block = block[key]
        block[path[-1]] = value
        assert not valid(bad), path


def test_a_broken_plugin_is_left_out(installed, monkeypatch):
    registry = Registry.discover()
    before = recipe_schema(registry)["$defs"]["AdapterConfig"]["oneOf"]
    names = registry.names
    monkeypatch.setattr(
        registry, "names", lambda kind: [*names(kind), "gone"] if kind == "adapter" else names(kind)
    )
    assert recipe_schema(registry)["$defs"]["AdapterConfig"]["oneOf"] == before
