"""Names of other tools for methods: what is said to write is there to be written."""

from __future__ import annotations

import re

import pytest

from llmft.api.errors import PluginError
from llmft.registry.other_names import OTHER_NAMES
from llmft.registry.registry import Registry

ALL = [(kind, name) for kind, names in OTHER_NAMES.items() for name in names]


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_what_is_suggested_for_another_tools_name_is_there(kind, name):
    registry = Registry.discover()
    with pytest.raises(PluginError, match=f"no {kind} is called") as caught:
        registry.method(kind, name.upper().replace("_", "-"))
    fix = caught.value.faults[0].fix
    assert fix == OTHER_NAMES[kind][name]
    settings = set(re.findall(r"(\w+): ", fix)) - {"method", "text"}
    for method in re.findall(r"method: (\w+)", fix):
        assert settings <= set(registry.method(kind, method).Config.model_fields)
