"""A tiny recipe of four stages, its unbroken run, and what a test compares."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path

import pytest

from llmft.engine.session import run_recipe
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry

NAMES = ("sft", "collect", "rank", "dpo")
TRAIN = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def registry():
    return Registry.discover()


@pytest.fixture(scope="module")
def data(model_folder, tmp_path_factory) -> dict:
    """A tiny pipeline as plain data; its rows lie in files of its own, for a test to change."""
    folder = tmp_path_factory.mktemp("pipeline")
    rows = [{"prompt": f"say {n}:", "completion": f" {n % 7}"} for n in range(12)]
    write_rows(folder / "rows.jsonl", rows)
    write_rows(folder / "prompts.jsonl", [{"prompt": row["prompt"]} for row in rows[:6]])
    return {
        "recipe": 1,
        "name": "pipe",
        "output_dir": str(folder / "runs"),
        "model": {"path": str(model_folder)},
        "stages": [
            {
                "name": "sft",
                "adapter": {"method": "lora", "r": 2},
                "alignment": {"method": "sft"},
                "data": {"method": "jsonl", "path": str(folder / "rows.jsonl")},
                "train": TRAIN,
            },
            {
                "name": "collect",
                "start_from": "sft",
                "task": {"method": "collect", "num_return_sequences": 3, "max_new_tokens": 5},
                "data": {"method": "prompts", "path": str(folder / "prompts.jsonl")},
            },
            {
                "name": "rank",
                "task": {
                    "method": "rank",
                    "samples": "collect",
                    "judge": {"method": "length", "target": 5, "unit": "characters"},
                },
            },
            {
                "name": "dpo",
                "start_from": "sft",
                "alignment": {"method": "dpo"},
                "data": {"method": "from_stage", "stage": "rank"},
                "train": TRAIN,
            },
        ],
    }


def write_rows(path: Path, rows: list) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def load(registry, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")

    def loaded(data: dict, *overrides: str):
        path = folder / "recipe.yaml"
        path.write_text(json.dumps(data))
        return load_recipe(path, registry, overrides)

    return loaded


@pytest.fixture(scope="module")
def whole(data, load, registry) -> Path:
    """The folder of an unbroken run; not to be changed."""
    return run_recipe(load(data)).folder


@pytest.fixture
def finished(whole, tmp_path) -> Path:
    """A copy of the unbroken run, to be gone on with."""
    return Path(shutil.copytree(whole, tmp_path / "runs" / "pipe" / whole.name))


@pytest.fixture
def edited(data):
    """Return the recipe with a setting of a stage replaced."""

    def edit(stage: str, *keys: str, to) -> dict:
        changed = copy.deepcopy(data)
        block = next(one for one in changed["stages"] if one["name"] == stage)
        for key in keys[:-1]:
            block = block[key]
        block[keys[-1]] = to
        return changed

    return edit


@pytest.fixture
def ran(monkeypatch):
    """The names of the stages that do something, in order."""
    from llmft.engine.session import Engine

    names: list[str] = []
    original = Engine.llmft_run_stage

    def noted(self, stage, context):
        names.append(stage.name)
        return original(self, stage, context)

    # pluggy reads the hook's mark from the function that it finds
    noted.llmft_impl = original.llmft_impl
    monkeypatch.setattr(Engine, "llmft_run_stage", noted)
    return names


def made(folder: Path) -> dict[str, str]:
    """The SHA-256 of every adapter and every rows file of a run."""
    files = [*folder.glob("stages/*/adapter/*.safetensors"), *folder.glob("stages/*/rows.jsonl")]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
    }


def times(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
