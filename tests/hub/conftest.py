"""A fake hub, and a finished run to send there; the client is the real one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmft.engine.session import run_recipe
from llmft.modeling.tiny_models import tiny_model_folder
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from tests.hub.fake_hub import TOKEN, FakeHub

RECIPE = """
recipe: 1
name: tiny
output_dir: {folder}/runs
model: {{path: {model}}}
stages:
  - name: sft
    adapter: {{method: lora, r: 2}}
    alignment: {{method: sft}}
    data: {{method: jsonl, path: {rows}}}
    train: {{max_steps: 2, per_device_train_batch_size: 4, logging_steps: 1}}
    evaluate: {{metrics: [loss], holdout: 0.2}}
trackers: [{{method: console}}, {{method: jsonl}}]
"""
PUSH = "push_to_hub: {repo_id: me/tiny-adapter}\n"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("private-place"))


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("secret-project") / "rows.jsonl"
    rows = [{"prompt": f"say {n}:", "completion": f" {n % 7}"} for n in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def hub(monkeypatch) -> Iterator[FakeHub]:
    """A hub that the client in this process and in children talks to, with a user logged in."""
    import huggingface_hub.constants as constants

    served = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield served
    served.close()


@pytest.fixture(scope="session")
def run_in(model_folder, rows_file):
    """Run a tiny recipe under a folder, with more lines at its end, and return the summary."""

    def run(folder: Path, more: str = PUSH):
        path = folder / "recipe.yaml"
        path.write_text(RECIPE.format(folder=folder, model=model_folder, rows=rows_file) + more)
        registry = Registry.discover()
        return run_recipe(load_recipe(path, registry))

    return run


@pytest.fixture
def run(run_in, tmp_path):
    """Run a tiny recipe with more lines at its end, and return the summary."""
    return lambda more=PUSH: run_in(tmp_path, more)


@pytest.fixture(scope="session")
def finished(run_in, tmp_path_factory) -> Path:
    """The folder of a finished run that nobody was logged in for, to be sent afterwards."""
    import huggingface_hub.constants as constants

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HF_TOKEN", raising=False)
        patch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
        return run_in(tmp_path_factory.mktemp("finished")).folder
