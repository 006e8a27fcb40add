"""`dtype: auto`: the base is loaded in the type of its own files, and everything sees that type."""

from __future__ import annotations

import json

import pytest
import torch

from llmft.api.errors import EnvironmentFault
from llmft.api.model_settings import ModelSource
from llmft.cli.main import main
from llmft.modeling.base_model import BaseModel
from llmft.modeling.tiny_models import tiny_llama, tiny_model_folder


@pytest.fixture
def folder(tmp_path):
    """Save a tiny model of a type; named: what its config says of it."""

    def save(dtype: torch.dtype, named: str | None = None) -> str:
        path = tiny_model_folder(tmp_path, tiny_llama().to(dtype))
        config = json.loads((path / "config.json").read_text())
        config.pop("dtype", None)
        if named:
            config["dtype"] = named
        (path / "config.json").write_text(json.dumps(config))
        return str(path)

    return save


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("named", [True, False], ids=["in the config", "in the files alone"])
def test_auto_is_the_type_of_the_files(folder, dtype, named):
    name = str(dtype).removeprefix("torch.")
    base = BaseModel(ModelSource(path=folder(dtype, name if named else None), dtype="auto"))
    assert base.source.dtype == name
    assert base.asked.dtype == "auto"
    assert base.empty().dtype == base.load({}, varlen=False).dtype == dtype


def test_a_named_type_is_taken_whatever_the_files_say(folder):
    base = BaseModel(ModelSource(path=folder(torch.bfloat16, "bfloat16"), dtype="float32"))
    assert base.load({}, varlen=False).dtype == torch.float32


def test_a_type_that_no_base_is_loaded_in_is_refused(folder):
    path = folder(torch.float64, "float64")
    with pytest.raises(EnvironmentFault, match="say no type that a model is loaded in"):
        _ = BaseModel(ModelSource(path=path, dtype="auto")).source


def recipe(tmp_path, model: str, **train) -> str:
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": f"say {n}:", "completion": f" {n}"}) + "\n" for n in range(8))
    )
    stage = {
        "name": "sft", "adapter": {"method": "lora", "r": 2}, "alignment": {"method": "sft"},
        "data": {"method": "jsonl", "path": str(tmp_path / "rows.jsonl")},
        "train": {"max_steps": 1, **train},
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(
        json.dumps(
            {"recipe": 1, "name": "tiny", "output_dir": str(tmp_path / "runs"),
             "model": {"path": model, "dtype": "auto"}, "stages": [stage]}
        )
    )  # fmt: skip
    return str(path)


def test_autocast_on_files_of_float16_is_refused_at_the_key(folder, tmp_path, capsys):
    path = recipe(tmp_path, folder(torch.float16, "float16"), bf16=True)
    assert main(["validate", path]) == 0  # what the files say is not read without --model
    assert main(["validate", path, "--model"]) == 2
    assert "stages[0].train.bf16: bf16 cannot compute in bfloat16" in capsys.readouterr().err


def test_plan_and_run_take_the_same_type(folder, tmp_path, capsys):
    path = recipe(tmp_path, folder(torch.bfloat16, "bfloat16"))
    assert main(["plan", path]) == 0
    assert "in bfloat16" in capsys.readouterr().out
    losses = []
    for words in ([], ["--set", "model.dtype=bfloat16"]):
        assert main(["run", path, "--json", *words]) == 0
        told = json.loads(capsys.readouterr().out)
        losses.append(told["stages"]["sft"]["metrics"]["train_loss"])
    assert losses[0] == losses[1]
