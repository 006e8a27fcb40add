"""When a finished stage runs again: where what it was made from is another, and only there."""

from __future__ import annotations

import copy
import json

import pytest

from llmft.api.errors import CheckpointError
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.runs.fingerprint import stage_fingerprint

LOCK = {
    "model": {"path": "m", "sha256": {"model.safetensors": "a"}},
    "plugins": [
        {"kind": "adapter", "method": "lora", "distribution": "d", "version": "1"},
        {"kind": "alignment", "method": "sft", "distribution": "d", "version": "1"},
        {"kind": "alignment", "method": "dpo", "distribution": "d", "version": "1"},
        {"kind": "dataset", "method": "jsonl", "distribution": "d", "version": "1"},
        {"kind": "tracker", "method": "jsonl", "distribution": "d", "version": "1"},
        {"kind": "file", "method": "jsonl", "distribution": "d", "version": "1",
         "sha256": "a", "stages": ["other"]},
        {"kind": "file", "method": "mine", "distribution": "d", "version": "1",
         "sha256": "a", "stages": ["sft"]},
    ],
}  # fmt: skip


@pytest.fixture
def identity(recipe, tmp_path):
    """Return the fingerprint of the stage, with what the lock says of one plugin changed."""

    def identity(kind: str = "", method: str = "", **changed) -> str:
        lock = copy.deepcopy(LOCK)
        for plugin in lock["plugins"]:
            if (plugin["kind"], plugin["method"]) == (kind, method):
                plugin.update(changed)
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(recipe))
        asked = load_recipe(path, Registry.discover()).recipe
        return stage_fingerprint(asked, asked.stages[0], lock, tmp_path, {"train": "b"})

    return identity


@pytest.mark.parametrize("plugins", [[{"kind": "adapter", "method": "lora"}], ["x"], 7])
def test_a_lock_of_another_shape_is_named(recipe, tmp_path, plugins):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    asked = load_recipe(path, Registry.discover()).recipe
    with pytest.raises(CheckpointError, match=r"E401.*not as a run writes it"):
        stage_fingerprint(asked, asked.stages[0], {**LOCK, "plugins": plugins}, tmp_path, {})


@pytest.mark.parametrize(
    ("kind", "method", "changed", "again"),
    [
        ("adapter", "lora", {"version": "2"}, True),
        ("alignment", "sft", {"distribution": "e"}, True),
        ("dataset", "jsonl", {"version": "2"}, True),
        ("alignment", "dpo", {"version": "2"}, False),
        ("tracker", "jsonl", {"version": "2"}, False),
        ("file", "mine", {"sha256": "b"}, True),
        ("file", "mine", {"version": "2"}, False),
        ("file", "jsonl", {"sha256": "b", "version": "2"}, False),
    ],
)
def test_a_stage_is_of_the_versions_of_the_methods_that_make_it(
    identity, kind, method, changed, again
):
    """A tracker of the name of a data set makes nothing; own code counts by what is in it."""
    assert (identity(kind, method, **changed) != identity()) is again
