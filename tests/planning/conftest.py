"""Recipes over tiny models, as data, and the real and the planned stage of each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmft.engine.stage import StageRunner
from llmft.engine.trackers import Trackers
from llmft.modeling.base_model import BaseModel
from llmft.modeling.tiny_models import tiny_gpt2, tiny_model_folder
from llmft.planning.planned_stage import PlannedStage
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory) -> dict[str, Path]:
    return {
        "llama": tiny_model_folder(tmp_path_factory.mktemp("llama")),
        "gpt2": tiny_model_folder(tmp_path_factory.mktemp("gpt2"), tiny_gpt2()),
    }


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [{"prompt": f"say {n}:" * (1 + n % 9), "completion": f" {n}" * 5} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry.discover()


def tiny_recipe(model: Path, rows: Path) -> dict:
    return {
        "recipe": 1,
        "name": "tiny",
        "model": {"path": str(model)},
        "stages": [
            {
                "name": "only",
                "adapter": {"method": "lora", "r": 4},
                "alignment": {"method": "sft"},
                "data": {"method": "jsonl", "path": str(rows)},
                "train": {"per_device_train_batch_size": 4, "num_train_epochs": 2},
            }
        ],
    }


@pytest.fixture
def recipe(model_folders, rows_file) -> dict:
    """A recipe as plain data, for a test to change."""
    return tiny_recipe(model_folders["llama"], rows_file)


@pytest.fixture
def loaded(tmp_path, registry):
    """Write a recipe into a file and load it."""

    def load(data: dict):
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(data))  # JSON is YAML
        return load_recipe(path, registry)

    return load


@pytest.fixture
def stage_of(registry, loaded, tmp_path):
    """Return the real StageRunner, or the PlannedStage, of a recipe's first stage."""

    def made(data: dict, kind: type[StageRunner] = StageRunner) -> StageRunner:
        job = loaded(data)
        bound, base = job.stages[0], BaseModel(job.recipe.model)
        run = tmp_path / "run"
        folder = run / "stages" / bound.name
        folder.mkdir(parents=True, exist_ok=True)
        if issubclass(kind, PlannedStage):
            return kind(job, bound, base, folder=folder, in_ram=True)
        return kind(
            job, bound, base, run=run, folder=folder, dataset=bound.dataset, trackers=Trackers([])
        )

    return made
