"""How many rows a step has over all processes: checked before a run, and when it is resumed."""

from __future__ import annotations

import json

import pytest

from llmft.api.errors import CheckpointError
from llmft.engine.preflight import preflight
from llmft.engine.session import run_recipe
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.runs import fingerprint, resuming


@pytest.fixture
def launched(monkeypatch):
    def launched(count: int) -> None:
        for name in ("RANK", "LOCAL_RANK"):
            monkeypatch.setenv(name, "0")
        for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            monkeypatch.setenv(name, str(count))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", "1")

    return launched


@pytest.fixture
def stage(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{n}:", "completion": " x"}) + "\n"
                            for n in range(8)))  # fmt: skip

    def stage(**train):
        return {"name": "sft", "adapter": {"method": "lora", "r": 2},
                "alignment": {"method": "sft"}, "data": {"method": "jsonl", "path": str(rows)},
                "train": {"max_steps": 1, "per_device_train_batch_size": 2, **train}}  # fmt: skip

    return stage


def loaded(tmp_path, model_folder, stage):
    path = tmp_path / "other.yaml"
    data = {"recipe": 1, "name": "tiny", "model": {"path": str(model_folder)}, "stages": [stage]}
    path.write_text(json.dumps(data))
    return load_recipe(path, Registry.discover(), [f"output_dir={tmp_path / 'runs'}"])


def test_rows_that_cannot_be_dealt_out_to_the_processes_are_a_fault_with_its_place(
    tmp_path, model_folder, stage, launched
):
    job = loaded(tmp_path, model_folder, stage(train_batch_size=6))
    assert preflight(job, None) == []
    launched(2)
    (fault,) = preflight(job, None)
    assert (fault.code, fault.path) == ("E023", "stages[0].train.train_batch_size")
    assert "6 rows cannot be dealt out to 2 processes" in fault.what
    assert "write 8" in fault.fix
    launched(3)
    assert preflight(job, None) == []


def test_a_run_goes_on_in_another_number_of_processes_where_its_rows_are_kept(
    tmp_path, model_folder, stage, launched
):
    same = loaded(tmp_path, model_folder, stage(gradient_accumulation_steps=2))
    folder = run_recipe(same).folder
    assert resuming.examine(same, folder).finished
    launched(2)
    with pytest.raises(CheckpointError, match=r"E404.*had 4 rows in 1 process.*have 8 in 2 proc"):
        resuming.examine(same, folder)
    kept = loaded(tmp_path, model_folder, stage(train_batch_size=4))
    previous = resuming.examine(kept, folder)
    assert [edit.kind for edit in previous.edits] == ["allowed", "allowed"]
    assert previous.finished
    assert fingerprint.all_unchanged(kept, folder)
    more = loaded(tmp_path, model_folder, stage(train_batch_size=8))
    assert not resuming.examine(more, folder).finished
    assert not fingerprint.all_unchanged(more, folder)
