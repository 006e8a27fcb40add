"""Runs of a few steps with adapters of several kinds, shared by the tests of what leaves a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmft.inference.trained import TrainedStage, trained_stage

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
LORA = {"method": "lora", "r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}


def tied_model(folder: Path) -> Path:
    """Return a folder with a tiny bfloat16 Llama whose output layer shares the embedding."""
    import torch
    from transformers import LlamaForCausalLM

    from llmft.modeling.tiny_models import tiny_llama, tiny_model_folder

    config = tiny_llama().config
    config.tie_word_embeddings = True
    torch.manual_seed(5)
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    model.generation_config.temperature = 0.3  # without do_sample: transformers would not save it
    target = tiny_model_folder(folder, tiny_llama())
    settings = model.generation_config.to_diff_dict()
    model.generation_config.temperature = 1.0
    model.save_pretrained(target)
    (target / "generation_config.json").write_text(json.dumps(settings))
    return target


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [{"prompt": f"say {n}:", "completion": f" {n % 7}"} for n in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def train(
    model_folder: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Train an adapter for four large steps, once for each choice, and return the run's folder."""
    from llmft.engine.session import run_recipe
    from llmft.recipes.load import load_recipe
    from llmft.registry.registry import Registry

    made: dict[str, Path] = {}

    def train(
        adapter: dict[str, Any] = LORA, data: dict[str, Any] | None = None, **model: Any
    ) -> Path:
        key = json.dumps([adapter, data, {k: str(v) for k, v in model.items()}])
        if key not in made:
            folder = tmp_path_factory.mktemp("runs")
            stage = {
                "name": "sft", "adapter": adapter, "alignment": {"method": "sft"},
                "data": data or {"method": "jsonl", "path": str(rows_file)},
                "train": {"max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 1,
                          "learning_rate": 0.02},
                "evaluate": {"metrics": ["loss", "exact_match"], "holdout": 0.3, "samples": 3,
                             "max_new_tokens": 8},
            }  # fmt: skip
            recipe = {"recipe": 1, "name": "tiny", "output_dir": str(folder / "runs"),
                      "model": {"path": str(model_folder)} | model, "stages": [stage],
                      "trackers": [{"method": "jsonl"}]}  # fmt: skip
            path = folder / "recipe.yaml"
            path.write_text(json.dumps(recipe))
            made[key] = run_recipe(load_recipe(path, Registry.discover())).folder
        return made[key]

    return train


@pytest.fixture(scope="session")
def lora_run(train: Callable[..., Path]) -> Path:
    return train(chat_template=TEMPLATE)


@pytest.fixture
def trained(lora_run: Path) -> TrainedStage:
    return trained_stage(lora_run)


@pytest.fixture(scope="session")
def chat_run(train: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on conversations, whose template writes no BOS."""
    path = tmp_path_factory.mktemp("talks") / "talks.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"say {n}:"},
                      {"role": "assistant", "content": f" {n % 7}"}]}
        for n in range(20)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return train(data={"method": "chat", "path": str(path)}, chat_template=TEMPLATE)
