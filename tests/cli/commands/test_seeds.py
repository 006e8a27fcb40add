"""`llmft run --seeds`: each seed's run is the run of that seed, and the scatter is arithmetic."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from llmft.cli.main import main


@pytest.fixture
def recipe(tmp_path, model_folder):
    rows = [{"prompt": f"say {n}:", "completion": f" {n}"} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {
        "name": "sft", "adapter": {"method": "lora", "r": 2}, "alignment": {"method": "sft"},
        "data": {"method": "jsonl", "path": str(tmp_path / "rows.jsonl")},
        "train": {"max_steps": 2, "learning_rate": 1e-2},
        "evaluate": {"metrics": ["loss"], "holdout": 0.2},
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(
        json.dumps(
            {"recipe": 1, "name": "tiny", "seed": 5, "model": {"path": str(model_folder)},
             "output_dir": str(tmp_path / "runs"), "stages": [stage]}
        )
    )  # fmt: skip
    return path


def loss_of(folder: str) -> float:
    result = json.loads((Path(folder) / "stages/sft/result.json").read_text("utf-8"))
    return result["after"]["loss"]


def test_each_seed_is_a_run_and_the_scores_come_as_mean_and_deviation(recipe, capsys):
    assert main(["run", str(recipe), "--seeds", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["seeds"] == [5, 6, 7]
    losses = [loss_of(folder) for folder in told["folders"]]
    (score,) = told["scores"]
    assert (score["stage"], score["metric"], score["values"]) == ("sft", "loss", losses)
    assert score["mean"] == pytest.approx(sum(losses) / 3)
    assert score["sd"] == pytest.approx(statistics.stdev(losses))
    assert len(set(losses)) == 3
    for folder in told["folders"]:
        assert Path(folder).name in Path(told["page"]).read_text("utf-8")

    assert main(["run", str(recipe), "--set", "seed=6", "--json"]) == 0
    assert loss_of(json.loads(capsys.readouterr().out)["folder"]) == losses[1]


def test_the_table_has_a_column_for_each_seed(recipe, capsys):
    assert main(["run", str(recipe), "--seeds", "2", "--quiet"]) == 0
    head, row, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["score", "mean", "±", "sd,", "n=2", "5", "6"]
    assert row.startswith("sft loss")


@pytest.mark.parametrize("option", [["--resume"], ["--smoke"], ["--until", "sft"]])
def test_an_option_about_one_run_is_refused(recipe, capsys, option):
    assert main(["run", str(recipe), "--seeds", "2", *option]) == 2
    assert f"--seeds and {option[0]} exclude each other" in capsys.readouterr().err


def test_a_stage_with_a_seed_of_its_own_is_refused_as_it_would_not_differ(recipe, capsys):
    argv = ["run", str(recipe), "--seeds", "2", "--quiet", "--set"]
    assert main([*argv, "stages.0.seed=3"]) == 2
    assert "stages.0.seed is 3 in every run of --seeds" in capsys.readouterr().err
    assert main([*argv, "stages.0.seed=null"]) == 0


def test_under_a_launcher_it_is_refused(recipe, capsys, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "here",
                        "MASTER_PORT": "1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert main(["run", str(recipe), "--seeds", "2"]) == 2
    assert "--set seed=N" in capsys.readouterr().err
