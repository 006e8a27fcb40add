"""Stages of earlier runs, and files of later stages: looked at before anything runs."""

from __future__ import annotations

import copy
import shutil

import pytest

from llmft.api.errors import LlmftError
from llmft.engine.session import run_recipe
from llmft.modeling.tiny_models import tiny_model_folder

from .conftest import made


def test_a_run_starts_from_a_stage_of_an_earlier_run(whole, data, load, registry, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(whole, runs / "pipe" / whole.name)
    later = {**copy.deepcopy(data), "name": "later", "stages": copy.deepcopy(data["stages"][1:])}
    for stage in later["stages"]:
        if "start_from" in stage:
            stage["start_from"] = f"run:{whole.name}/sft"
    summary = run_recipe(load(later, f"output_dir={runs}"))
    theirs = {path: digest for path, digest in made(whole).items() if "sft" not in path}
    assert made(summary.folder) == theirs


def test_an_earlier_run_that_is_not_there_is_an_error(data, load, registry, tmp_path):
    later = {**copy.deepcopy(data), "stages": copy.deepcopy(data["stages"][1:2])}
    later["stages"][0]["start_from"] = "run:20200101-000000-abc/sft"
    with pytest.raises(LlmftError, match="E402"):
        run_recipe(load(later, f"output_dir={tmp_path}"))


@pytest.mark.parametrize(
    ("named", "said"),
    [("sft", "E033.*made policy; one that makes samples is needed"), ("none", "E402.*'none'")],
)
def test_a_later_stages_earlier_run_is_looked_at_before_anything_runs(
    whole, edited, load, registry, tmp_path, ran, named, said
):
    runs = tmp_path / "runs"
    shutil.copytree(whole, runs / "pipe" / whole.name)
    changed = edited("rank", "task", "samples", to=f"run:{whole.name}/{named}")
    with pytest.raises(LlmftError, match=said):
        run_recipe(load({**changed, "name": "other"}, f"output_dir={runs}"))
    assert ran == []
    assert not (runs / "other").exists()


@pytest.mark.parametrize("named", ["start_from", "samples"])
def test_a_stage_of_another_base_model_gives_no_adapter_but_its_rows(
    whole, data, edited, load, registry, tmp_path, ran, named
):
    other = tiny_model_folder(tmp_path / "other", seed=5)
    runs = tmp_path / "runs"
    shutil.copytree(whole, runs / "pipe" / whole.name)
    if named == "samples":
        changed = edited("rank", "task", "samples", to=f"run:{whole.name}/collect")
    else:
        changed = edited("dpo", "start_from", to=f"run:{whole.name}/sft")
    later = load({**changed, "name": "later", "model": {"path": str(other)}}, f"output_dir={runs}")
    if named == "samples":
        run_recipe(later)
        return
    with pytest.raises(LlmftError, match=r"E405.*was made on another base model") as caught:
        run_recipe(later)
    assert data["model"]["path"] in str(caught.value)
    assert ran == []


@pytest.mark.parametrize("stage", ["collect", "more"])
def test_a_later_stages_missing_file_is_found_before_anything_runs(
    data, edited, load, registry, tmp_path, ran, stage
):
    changed = edited("collect", "data", "path", to=str(tmp_path / "gone.jsonl"))
    if stage == "more":
        changed = copy.deepcopy(data)
        more = {**data["stages"][0], "name": "more"}
        more["data"] = {"method": "jsonl", "path": str(tmp_path / "gone.jsonl")}
        changed["stages"].append(more)
    with pytest.raises(LlmftError, match=r"gone\.jsonl"):
        run_recipe(load(changed, f"output_dir={tmp_path / 'runs'}"))
    assert ran == []
    assert not (tmp_path / "runs").exists()
