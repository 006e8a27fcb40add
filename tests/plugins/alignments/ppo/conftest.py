"""Tiny models, prompts and a function that runs a recipe with PPO in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llmft.modeling.tiny_models import tiny_llama, tiny_model_folder
from llmft.testing import measures


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with measures.one_thread():
        yield


def decided():
    """Return a tiny model that finds some tokens much likelier than others, as a real one does."""
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    return model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("models"), decided())


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory) -> Path:
    """Rows that are prompts, completions and preferences at once."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [
        {"prompt": f"say {n}:", "answers": [f"{n % 7}"], "chosen": f" {n % 7}", "rejected": " no"}
        for n in range(24)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


TRAIN = {
    "max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 0.01, "logging_steps": 1,
}  # fmt: skip


@pytest.fixture
def ppo(rows_file):
    """Return a PPO stage of a recipe as plain data."""

    def ppo(**extra):
        adapter = {} if "start_from" in extra else {"adapter": {"method": "lora", "r": 4}}
        options = {
            "reward": {"method": "length", "target": 4, "unit": "characters"},
            "response_length": 6, "temperature": 1.0, "num_ppo_epochs": 2, "num_mini_batches": 2,
        }  # fmt: skip
        return {
            "name": "ppo",
            **adapter,
            "alignment": {"method": "ppo", **options, **extra.pop("options", {})},
            "data": {
                "method": "prompts", "path": str(rows_file), "columns": {"answers": "answers"},
            },
            "train": {**TRAIN, **extra.pop("train", {})},
            **extra,
        }  # fmt: skip

    return ppo


@pytest.fixture
def sft(rows_file):
    """Return an SFT stage that moves an adapter away from where it starts."""

    def sft(**adapter):
        data = {"method": "jsonl", "path": str(rows_file), "columns": {"completion": "chosen"}}
        return {
            "name": "sft", "adapter": adapter or {"method": "lora", "r": 4},
            "alignment": {"method": "sft"}, "data": data, "train": {**TRAIN, "max_steps": 2},
        }  # fmt: skip

    return sft


def metrics_of(summary, stage: str = "ppo") -> list[dict]:
    """Return the logged training metrics of a stage."""
    path = summary.folder / "stages" / stage / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line.get("phase") == "train"]
