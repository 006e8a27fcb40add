"""A tiny model, tiny rows, and distributions of somebody else's, made on the fly."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmft.modeling.tiny_models import tiny_model_folder


@pytest.fixture
def recipe_file(tmp_path) -> Callable[..., Path]:
    """Write a recipe over tiny rows, with changes to its stage, and return its path."""

    def written(rows: list[dict] | None = None, **changes) -> Path:
        model = tmp_path / "model"
        if not model.exists():
            tiny_model_folder(tmp_path)
        made = rows or [{"prompt": f"say {n}:", "completion": f" {n % 7}"} for n in range(18)]
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in made))
        stage = {
            "name": "sft",
            "adapter": {"method": "lora", "r": 2},
            "alignment": {"method": "sft"},
            "data": {"method": "jsonl", "path": str(path)},
            "train": {"max_steps": 3, "per_device_train_batch_size": 4},
        }
        top = {key: changes.pop(key) for key in ("plugins", "trackers") if key in changes}
        for key, value in changes.items():
            stage[key] = {**stage.get(key, {}), **value}
        recipe = {"recipe": 1, "name": "tiny", "output_dir": str(tmp_path / "runs"), **top}
        recipe |= {"model": {"path": str(model)}, "stages": [stage]}
        target = tmp_path / "recipe.json"
        target.write_text(json.dumps(recipe))
        return target

    return written


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution 'llmft-theirs' 1.2 of one module, gone again after the test."""

    def act(source: str, group: str, name: str) -> None:
        site = tmp_path / "site"
        info = site / "llmft_theirs-1.2.dist-info"
        info.mkdir(parents=True)
        (site / "llmft_theirs.py").write_text(source)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llmft-theirs\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = llmft_theirs\n")
        monkeypatch.syspath_prepend(str(site))

    yield act
    sys.modules.pop("llmft_theirs", None)
