"""What a run stands on, as its lock says it: the files that make a model what it is."""

from __future__ import annotations

import shutil

from llmft.api.model_settings import ModelSource
from llmft.modeling.base_model import BaseModel
from llmft.runs.provenance import model_hashes
from llmft.system import fsio


def test_a_models_weights_settings_and_tokenizer_are_hashed_and_nothing_else(
    model_folder, tmp_path
):
    """A card that is edited, or a folder beside the files, makes it no other model."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    base = BaseModel(ModelSource(path=str(folder)))
    before = model_hashes(base)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= before.keys()
    assert before["config.json"] == fsio.sha256(folder / "config.json")
    (folder / "README.md").write_text("a card")
    (folder / "LICENSE").write_text("a licence")
    (folder / "onnx").mkdir()
    (folder / "old.json").mkdir()
    assert model_hashes(base) == before
    (folder / "merges.txt").write_text("a b\n")
    assert model_hashes(base).keys() - before.keys() == {"merges.txt"}
