"""Tokens that a recipe adds, in stages: trained with the adapter, or refused where it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmft.api.errors import LlmftError
from llmft.engine.preflight import preflight
from llmft.engine.session import run_recipe
from llmft.modeling.base_model import BaseModel
from llmft.modeling.tiny_models import tiny_gpt2, tiny_model_folder
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry

TOKENS = {"add_tokens": ["<tool>", "</tool>"]}
BOTH = ["embed_tokens", "lm_head"]
LORA = {"method": "lora", "r": 2}


def stage(rows: Path, adapter: Any = LORA, **more: Any) -> dict[str, Any]:
    return {
        "name": "sft", "adapter": adapter, "alignment": {"method": "sft"},
        "data": {"method": "jsonl", "path": str(rows)},
        "train": {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.02}, **more,
    }  # fmt: skip


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    made = [{"prompt": f"ask {n}:", "completion": f"<tool>{n % 5}</tool>"} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


@pytest.fixture
def job(tmp_path: Path, model_folder: Path) -> Any:
    def load(*stages: Any, name: str = "tools", **model: Any) -> Any:
        path = tmp_path / f"{name}.yaml"
        data = {"recipe": 1, "name": name, "output_dir": str(tmp_path / "runs"),
                "model": {"path": str(model_folder)} | model, "stages": list(stages)}  # fmt: skip
        path.write_text(json.dumps(data))
        return load_recipe(path, Registry.discover())

    return load


@pytest.mark.parametrize(("adapter", "trains"), [
    (LORA, True), ({"method": "dora", "r": 2}, True), ({"method": "full"}, True),
    (LORA | {"modules_to_save": BOTH}, True), ({"method": "ia3", "modules_to_save": BOTH}, True),
    ({"method": "ia3", "modules_to_save": ["lm_head"]}, False), ({"method": "ia3"}, False),
    ({"method": "full", "freeze_parameters": ["embed_tokens"]}, False),
    ({"method": "prompt", "num_virtual_tokens": 2}, False),
    ({"method": "prefix", "num_virtual_tokens": 2}, False),
])  # fmt: skip
def test_an_adapter_trains_the_new_rows_or_is_refused(
    adapter: dict[str, Any], trains: bool, rows: Path, job: Any
) -> None:
    made = job(stage(rows, adapter), **TOKENS)
    told = [fault.line() for fault in preflight(made, BaseModel(made.recipe.model))]
    assert len(told) == (0 if trains else 1)
    assert trains or ("E047" in told[0] and "stages[0].adapter.method" in told[0])


@pytest.mark.parametrize("base", ["llama", "gpt2"])
@pytest.mark.parametrize("adapter", [LORA, LORA | {"modules_to_save": BOTH}, {"method": "full"}])
def test_the_new_rows_are_trained_and_saved(
    adapter: dict[str, Any], base: str, rows: Path, job: Any, tmp_path: Path
) -> None:
    tied = base == "gpt2"
    if tied and "modules_to_save" in adapter:
        pytest.skip("a whole layer that is tied is refused")
    folder = {"path": str(tiny_model_folder(tmp_path, tiny_gpt2()))} if tied else {}
    made = run_recipe(job(stage(rows, adapter), **folder, **TOKENS)).folder / "stages/sft/adapter"
    start = BaseModel(job(stage(rows), **folder, **TOKENS).recipe.model).load({}, varlen=False)
    start = start.get_input_embeddings().weight
    weights = {}
    for file in made.glob("*.safetensors"):
        weights |= load_file(file)
    found = next(w for name, w in weights.items() if "embed_tokens" in name or "wte" in name)
    new = found if len(found) == 2 else found[257:259]
    assert not torch.isclose(new, start[257:259]).all(1).any()
    if len(found) > 2 and adapter["method"] == "lora":
        assert torch.equal(found[259:], start[259:])  # no row is named for them, and decay is 0
    assert "<tool>" in (made / "tokenizer.json").read_text()


@pytest.mark.parametrize("now", [{}, {"add_tokens": ["</tool>", "<tool>"]}])
def test_a_stage_of_a_run_with_other_tokens_is_not_gone_on_with(
    now: dict[str, Any], rows: Path, job: Any
) -> None:
    first = run_recipe(job(stage(rows), **TOKENS))
    later = stage(rows, start_from=f"run:{first.folder.name}/sft")
    later.pop("adapter")
    with pytest.raises(LlmftError, match=r"E405.*'<tool>', '</tool>' added to the tokenizer"):
        run_recipe(job(later, **now))
    run_recipe(job(later, **TOKENS))


def test_a_row_beyond_the_models_is_no_longer_an_id_without_an_embedding(
    rows: Path, job: Any, tmp_path: Path
) -> None:
    from tests.modeling.test_new_tokens import full_llama

    folder = tiny_model_folder(tmp_path, full_llama(tied=True))
    summary = run_recipe(job(stage(rows), path=str(folder), **TOKENS))
    lock = json.loads((summary.folder / "lock.json").read_text())
    assert lock["model"]["new_tokens"] == ["<tool>", "</tool>"]
