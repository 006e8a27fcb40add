"""Each example of another tool on the page becomes the recipe that stands below it."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmft.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "moving.md"
BLOCKS = re.findall(r"^```(yml|yaml|text)\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
EXAMPLES = [
    pytest.param(kind, text, recipe, id=yaml.safe_load(recipe)["name"])
    for (kind, text), (shown, recipe) in itertools.pairwise(BLOCKS)
    if kind != "yaml" and shown == "yaml"
]


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of a recipe by their paths; a list is a leaf, unless it holds blocks."""
    if isinstance(tree, list) and tree and isinstance(tree[0], dict):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict):
        return {path: tree}
    return {
        p: leaf for key, value in tree.items() for p, leaf in flat(value, f"{path}.{key}").items()
    }


def test_the_page_has_an_example_of_each_tool():
    assert len(EXAMPLES) == 8


@pytest.mark.parametrize(("kind", "text", "recipe"), EXAMPLES)
def test_an_example_becomes_the_recipe_below_it(kind, text, recipe, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    talks = {"talks": {"file_name": "talks.json", "formatting": "sharegpt"}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(talks))
    shown = flat(yaml.safe_load(recipe))
    # The recipe's name ends with that of the file.
    path = tmp_path / f"{shown['.name'].split('_')[-1]}.{kind}"
    path.write_text(text if kind == "yml" else re.sub(r"\n\s+", " ", text), "utf-8")
    asked = ["--trainer", "dpo"] if shown[".stages.0.alignment.method"] == "dpo" else []
    assert main(["import", str(path), *asked]) == 0
    written = flat(yaml.safe_load(capsys.readouterr().out))
    for tree in (shown, written):
        for key, value in tree.items():
            # "... {instruction} ..." stands for a text: its fields alone are compared.
            fields = re.findall(r"{.*?}", str(value)) if key.endswith("columns.text") else value
            tree[key] = str(fields).replace(f"{tmp_path}/", "")
    assert shown.items() <= written.items()
