"""`llmft verify resume`: a recipe of anybody's is run, killed, resumed and compared."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmft.cli.main import main
from llmft.engine.session import run_recipe
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.verifying.comparing import compare
from llmft.verifying.marks import Mark, chosen, read_marks, row_order
from llmft.verifying.resume import Try, overrides_for

MARKS = [
    Mark("sft", 0, "read the rows", 0), Mark("sft", 1, "train", 1), Mark("sft", 2, "train", 2),
    Mark("sft", 2, "save", 0), Mark("sft", 2, "evaluate", 1), Mark("sft", 2, "evaluate", 1),
    Mark("sft", 2, "publish", 0),
]  # fmt: skip


def test_moments_are_chosen_by_the_seed_in_their_order():
    for seed in range(20):
        taken = chosen(MARKS, 3, seed)
        assert taken == sorted(taken, key=MARKS.index)
        assert len(set(taken)) == 3
        assert sum(mark.phase in ("train", "save") for mark in taken) == 2
    assert len(chosen(MARKS, 99, 0)) == 6
    assert chosen(MARKS, 3, 1) == chosen(MARKS, 3, 1)
    assert {str(mark) for mark in MARKS[1:4]} == {
        "sft: after step 1", "sft: after step 2", "sft: while step-2 was saved",
    }  # fmt: skip


@pytest.fixture
def two(recipe_file, tmp_path):
    """Two copies of one finished run."""
    path = recipe_file(train={"save_strategy": "steps", "save_steps": 1})
    registry = Registry.discover()
    folder = run_recipe(load_recipe(path, registry)).folder
    shutil.copytree(folder, tmp_path / "other")
    return folder, tmp_path / "other"


def differences(pair, orders=({}, {})) -> dict[str, str]:
    return {f.what: f.difference for f in compare(*pair, orders) if f.difference}


def test_the_same_run_is_the_same(two):
    assert differences(two) == {}
    told = {f.what: f.compared for f in compare(*two, ({}, {}))}
    assert told["losses"] == "3 steps"
    assert "tensors" in told["weights"]


def newest(run: Path) -> Path:
    return run / "stages/sft/checkpoints/step-3"


def test_one_bit_of_one_weight_is_told(two):
    path = newest(two[1]) / "state.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if key.startswith("model/") and tensors[key].any())
    tensors[key].view(torch.int32).reshape(-1)[-1] ^= 1
    save_file(tensors, path)
    assert list(differences(two)) == ["weights"]
    assert key in differences(two)["weights"]


@pytest.mark.parametrize(("said", "unlike"), [("row 1", ""), ("row 2", "preview.html")])
def test_a_preview_is_compared_but_for_the_folders_of_the_runs(two, said, unlike):
    for run, row in zip(two, ("row 1", said), strict=True):
        page = run / "stages/sft/preview.html"
        page.write_text(f"<h3>{html.escape(str(run))}/stages/rank/rows.jsonl:1</h3>{row}")
    assert differences(two).get("files", "") == unlike


def test_another_loss_generator_score_or_order_is_told(two):
    path = newest(two[1]) / "state.json"
    state = json.loads(path.read_text())
    state["facts"]["report"]["losses"][1] += 1e-7
    state["facts"]["rng"]["python"][1][5] += 1
    path.write_text(json.dumps(state))
    result = two[1] / "stages/sft/result.json"
    facts = json.loads(result.read_text())
    result.write_text(json.dumps({**facts, "after": {"loss": 1.0}}))
    orders = {"sft": {0: {"a"}, 1: {"b"}}}, {"sft": {0: {"a"}, 1: {"b", "c"}}}
    found = differences(two, orders)
    assert found["losses"].startswith("from step 2")
    assert found["random generators"] == "another state"
    assert found["scores"] == "loss after"
    assert found["order of rows"] == "at step 2"


def test_what_is_run_is_short_saves_and_tells_nobody(recipe_file):
    registry = Registry.discover()
    recipe = load_recipe(recipe_file(), registry).written
    given = overrides_for(recipe, 8)
    assert "trackers=[{method: jsonl}]" in given
    assert "stages.sft.train.save_steps=2" in given
    assert "stages.sft.train.max_steps=8" in given
    saving = recipe_file(train={"save_strategy": "steps", "save_steps": 1})
    changes = overrides_for(load_recipe(saving, registry).written, None)
    assert not [text for text in changes if "train" in text]


def test_every_earlier_run_that_is_named_is_brought(tmp_path):
    for run in ("one", "two", "other"):
        (tmp_path / "runs/name" / run).mkdir(parents=True)
    recipe = {
        "recipe": 1, "name": "later", "output_dir": str(tmp_path / "runs"),
        "model": {"path": "embedded:model"},
        "stages": [{
            "name": "ppo", "start_from": "run:one/sft",
            "alignment": {"method": "ppo", "reward_model": "run:two/reward"},
            "data": {"method": "prompts", "path": "embedded:prompts"},
        }],
    }  # fmt: skip
    path = tmp_path / "later.yaml"
    path.write_text(json.dumps(recipe))
    Try(load_recipe(path, Registry.discover()), [], tmp_path / "try")
    brought = {run.name: run.resolve() for run in (tmp_path / "try/earlier").iterdir()}
    assert brought == {run: tmp_path / "runs/name" / run for run in ("one", "two")}


@pytest.mark.slow
def test_the_command_kills_and_compares(recipe_file, tmp_path, capsys):
    path = recipe_file()
    assert main(["verify", "resume", str(path), "--kills", "3", "--steps", "4", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["bit_exact"]
    assert len(said["kills"]) == 3
    assert {f["what"] for f in said["compared"]} >= {"weights", "losses", "order of rows"}
    assert list((tmp_path / "runs").iterdir()) == []  # it took its runs away


@pytest.mark.slow
def test_a_recipe_that_fails_says_why_and_where_it_is(recipe_file, tmp_path, capsys):
    path = recipe_file([{"prompt": "a"}] * 9)
    assert main(["verify", "resume", str(path)]) == 3
    said = capsys.readouterr().err
    assert "error[E10" in said
    (kept,) = (tmp_path / "runs").iterdir()
    assert f"the runs are kept in '{kept}'" in said


def test_the_recorder_tells_moments_and_order(recipe_file, tmp_path):
    """In a process of its own: it changes what every stage passes through."""
    import subprocess
    import sys

    job = {
        "recipe": str(recipe_file()), "overrides": [], "trust": [], "run_folder": None,
        "marks": str(tmp_path / "marks.jsonl"), "ended": str(tmp_path / "ended.json"),
        "kill_at": {"stage": "sft", "step": 2, "phase": "train", "done": 2},
    }  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "llmft.verifying.child", str(tmp_path / "job.json")]
    assert subprocess.run(command).returncode == -9
    assert not (tmp_path / "ended.json").exists()
    marks = read_marks(tmp_path / "marks.jsonl")
    assert marks[-1] == Mark("sft", 2, "train", 2)
    assert list(row_order(tmp_path / "marks.jsonl")["sft"]) == [0, 1]
