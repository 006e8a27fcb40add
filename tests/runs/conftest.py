"""A tiny model folder, tiny rows, and a function that runs a recipe over them in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from llmft.engine.session import run_recipe
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [{"prompt": f"say {n}:", "completion": f" {n % 7}"} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def recipe(model_folder, rows_file) -> dict:
    """A recipe as plain data, for a test to change."""
    return {
        "recipe": 1,
        "name": "tiny",
        "model": {"path": str(model_folder)},
        "stages": [
            {
                "name": "sft",
                "adapter": {"method": "lora", "r": 4},
                "alignment": {"method": "sft"},
                "data": {"method": "jsonl", "path": str(rows_file)},
                "train": {
                    "max_steps": 6,
                    "per_device_train_batch_size": 4,
                    "learning_rate": 0.01,
                    "logging_steps": 2,
                },
                "evaluate": {
                    "metrics": ["loss", "perplexity", "exact_match", "f1"],
                    "holdout": 0.2,
                    "max_new_tokens": 4,
                },
            }
        ],
    }


@pytest.fixture
def run(tmp_path):
    """Write a recipe to a file, run it, and return the summary."""

    def run(data: dict, *overrides: str):
        path = tmp_path / "recipe.yaml"
        with path.open("w") as stream:
            YAML(typ="safe").dump(data, stream)
        registry = Registry.discover()
        place = f"output_dir={tmp_path / 'runs'}"
        return run_recipe(load_recipe(path, registry, [place, *overrides]))

    return run
