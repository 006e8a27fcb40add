"""A GGUF file is held against the run: the same passes, each way to part is named.

The control flow runs with a module in llama.cpp's place; a real one is tried where there is one.
"""

from __future__ import annotations

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from llmft.api.errors import CheckpointError, EnvironmentFault
from llmft.cli.main import main
from llmft.exporting.folders import LlamaCpp, export
from llmft.exporting.merging import merge
from llmft.inference.trained import TrainedStage, trained_stage
from llmft.verifying import gguf
from llmft.verifying.gguf import gguf_file, verify_gguf
from tests.exporting.conftest import (  # noqa: F401 - fixtures
    chat_run,
    lora_run,
    rows_file,
    train,
)
from tests.extended import extended

# ruff: noqa: F811 - fixtures by their names


@pytest.fixture(scope="module")
def merged(chat_run, tmp_path_factory) -> tuple[TrainedStage, Path]:
    trained = trained_stage(chat_run)
    return trained, merge(trained, tmp_path_factory.mktemp("merged") / "out").folder


@pytest.fixture
def fake(monkeypatch, tmp_path) -> Path:
    """A folder with a module that stands in for llama.cpp, which this process finds."""
    (tmp_path / "modules").mkdir()
    shutil.copy(Path(__file__).parent / "fake_llama_cpp.py", tmp_path / "modules" / "llama_cpp.py")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return tmp_path


def written(fake: Path, folder: Path, **facts) -> Path:
    path = fake / "model.gguf"
    path.write_text("GGUF" + json.dumps({"folder": str(folder), "type": 0} | facts))
    return path


def names(verdict) -> list[str]:
    return [check.what for check in verdict.checks if not check.fine]


def test_the_same_model_answers_as_the_run(merged, fake):
    trained, folder = merged
    verdict = verify_gguf(trained, written(fake, folder), prompts=4, max_new_tokens=6)
    assert verdict.fine, verdict
    assert not verdict.causes
    assert verdict.distance.tokens > 30
    assert verdict.distance.max_logp < 1e-4
    assert "type F32, architecture llama" in verdict.how[0]
    assert verdict.how[1] == "a BOS before each text: no"


QUANTISED = (
    {"noise": 1.0, "type": 15}, None, "quantisation: the file's weights are of the type Q4_K_M"
)  # fmt: skip


@pytest.mark.parametrize(("facts", "differs", "cause"), extended([
    ({"template": "{{ messages[0].content }}"}, ["token ids in"], "template: .* another chat"),
    ({"template": ""}, ["token ids in"], "template: the file has no chat template"),
    ({"adds_bos": True}, ["token ids in"], r"BOS: .*\(7\)"),
    ({"noise": 0.5}, ["greedy answers", "log-probabilities, largest difference",
                      "log-probabilities, mean difference"], "weights: .* the file in F32"),
    QUANTISED,
], [QUANTISED]))  # fmt: skip
def test_each_way_to_part_is_named(facts, differs, cause, merged, fake):
    import re

    trained, folder = merged
    verdict = verify_gguf(trained, written(fake, folder, **facts), prompts=4, max_new_tokens=6)
    assert not verdict.fine
    if differs is not None:
        assert names(verdict) == differs
    assert re.search(cause, "; ".join(verdict.causes))


def test_the_tolerance_is_that_of_the_files_type():
    assert gguf._tolerances("float32", "F32", False, None) == (0.1, 0.01)
    assert gguf._tolerances("float32", "Q4_K_M", False, None) == (12.0, 0.7)
    assert gguf._tolerances("bfloat16", "Q8_0", False, None) == (2.0, 0.1)
    assert gguf._tolerances("float32", "Q2_K", False, None) == (12.0, 1.5)
    assert gguf._tolerances("float32", "F16", True, None) == (1.5, 0.2)
    assert gguf._tolerances("float32", "F16", True, 0.5) == (0.5, 0.5)


def test_llama_cpp_that_ends_is_a_fault_and_not_our_end(merged, fake):
    trained, folder = merged
    with pytest.raises(CheckpointError, match=r"E402.*it ended with signal 6"):
        verify_gguf(trained, written(fake, folder, dies=True), prompts=1, max_new_tokens=2)


def test_what_is_no_gguf_file_is_refused(merged, tmp_path):
    trained, _ = merged
    (tmp_path / "a.gguf").write_text("GGML")
    os.mkfifo(tmp_path / "b.gguf")
    for name, said in (("a", "no GGUF file"), ("b", "a pipe"), ("c", "cannot be read")):
        with pytest.raises(CheckpointError, match=rf"E402.*{said}"):
            verify_gguf(trained, tmp_path / f"{name}.gguf")
    with pytest.raises(CheckpointError, match="holds 2 GGUF files"):
        gguf_file(tmp_path)
    assert gguf_file(tmp_path / "x") is None


def test_where_llama_cpp_is_missing_the_package_is_named(merged, tmp_path, monkeypatch):
    (tmp_path / "a.gguf").write_text("GGUF")
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match=r"E206.*pip install llama-cpp-python"):
        verify_gguf(merged[0], tmp_path / "a.gguf")


@pytest.mark.extended
def test_the_command_takes_the_file_or_its_folder(merged, chat_run, fake, capsys):
    written(fake, merged[1])
    words = ["verify", "export", str(chat_run), str(fake), "--prompts", "2"]
    assert main([*words, "--max-new-tokens", "4"]) == 0
    said = capsys.readouterr().out
    assert "loaded by llama.cpp" in said
    assert "the same: what was exported answers as the run does" in said


@pytest.fixture(scope="module")
def real_run(tmp_path_factory) -> tuple[TrainedStage, Path]:
    """A run on stories15M, and llama.cpp's folder; the package is as it is installed."""
    place, assets = os.environ.get("LLMFT_LLAMA_CPP"), os.environ.get("LLMFT_REAL_ASSETS")
    if not place or not assets or find_spec("llama_cpp") is None:
        pytest.skip("needs LLMFT_LLAMA_CPP, LLMFT_REAL_ASSETS and llama-cpp-python")
    folder = _real_run(Path(assets), tmp_path_factory.mktemp("real"))
    return trained_stage(folder), Path(place)


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q6_K", "Q4_K_M", "Q3_K_M"])
def test_a_real_llama_cpp_answers_as_the_run(kind, real_run, tmp_path):
    trained, place = real_run
    made = export(trained, "gguf", tmp_path / "out", LlamaCpp(place, kind))
    file = gguf_file(made.folder)
    assert file is not None
    verdict = verify_gguf(trained, file, prompts=4, max_new_tokens=16)
    assert verdict.fine, verdict
    assert f"type {kind}" in verdict.how[0]


def _real_run(assets: Path, folder: Path) -> Path:
    from llmft.engine.session import run_recipe
    from llmft.recipes.load import load_recipe
    from llmft.registry.registry import Registry

    recipe = {
        "recipe": 1, "name": "real", "output_dir": str(folder / "runs"),
        "model": {"path": str(assets / "models" / "stories15M")},
        "stages": [{
            "name": "sft", "adapter": {"method": "lora", "r": 4}, "alignment": {"method": "sft"},
            "data": {"method": "jsonl", "path": str(assets / "data" / "tinystories.jsonl.gz"),
                     "columns": {"text": "text"}, "limit": 20},
            "train": {"max_steps": 2, "max_length": 64, "on_long_row": "truncate"},
            "evaluate": {"metrics": ["loss"], "holdout": 0.3},
        }],
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return run_recipe(load_recipe(folder / "recipe.yaml", Registry.discover())).folder
