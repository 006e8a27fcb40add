"""Scores of finished runs and plain models are those of the run itself, and of plain arithmetic."""

from __future__ import annotations

import json
import shutil

import pytest

from llmft.api.errors import RecipeError
from llmft.cli.main import main
from llmft.evaluation.intervals import wilson
from llmft.inference.evaluating import Asked, evaluate
from llmft.runs import artifacts
from tests.exporting.conftest import lora_run, rows_file, train  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures by their names


def test_a_run_gets_the_scores_it_has(lora_run):
    told = artifacts.result_of(lora_run / "stages/sft")
    found = evaluate(Asked(str(lora_run)))
    assert found.metrics.keys() == told["after"].keys()
    assert found.metrics == pytest.approx(told["after"])
    assert found.count == 6  # 0.3 of 20 rows
    base = evaluate(Asked(str(lora_run), base=True))
    assert base.metrics == pytest.approx(told["before"])


def test_other_rows_and_the_model_alone(lora_run, model_folder, rows_file, tmp_path):
    few = tmp_path / "few.jsonl"
    few.write_text("".join(rows_file.read_text().splitlines(keepends=True)[:5]))
    here = evaluate(Asked(str(lora_run), data=str(few), metrics=("loss",), base=True))
    alone = evaluate(Asked(str(model_folder), data=str(few), metrics=("loss",)))
    assert here.count == alone.count == 5
    assert here.metrics["loss"] == pytest.approx(alone.metrics["loss"], rel=1e-5)
    mine = evaluate(Asked(str(lora_run), data=str(few), metrics=("loss",)))
    assert mine.metrics["loss"] < alone.metrics["loss"] - 0.1
    assert evaluate(Asked(str(lora_run), data=str(few), limit=2, metrics=("loss",))).count == 2


def test_rows_that_are_left_out_or_cut_are_told(lora_run, rows_file, tmp_path, capsys):
    few = tmp_path / "few.jsonl"
    good = rows_file.read_text().splitlines()[:3]
    good[2] = json.dumps({"prompt": "say " * 50, "completion": " it"})
    few.write_text("\n".join([*good, '{"prompt": "no answer"}', "{broken"]))
    words = ["evaluate", str(lora_run), "--data", str(few), "--metrics", "loss"]
    skip = ["--set", "stages.sft.data.on_bad_row=skip"]
    long = ["--set", "stages.sft.train.max_length=24", "--set", "stages.sft.train.max_dropped=1.0"]
    assert main([*words, *skip, *long]) == 0
    told = capsys.readouterr().out
    assert "note: skipped 2 of 5 rows (40.0%)" in told
    assert "few.jsonl:4" in told
    assert "few.jsonl:5" in told
    assert "note: to compute the loss, of 3 rows: " in told
    assert main([*words, "--limit", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == []


def test_rows_that_were_learnt_are_told(lora_run, rows_file, tmp_path, capsys):
    other = tmp_path / "other.jsonl"
    rows = [{"prompt": f"say {n}:", "completion": " 99"} for n in range(20)]
    rows.append({"prompt": "unseen:", "completion": " 1"})
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["evaluate", str(lora_run), "--metrics", "loss"]
    assert main([*words, "--data", str(rows_file)]) == 0
    said = capsys.readouterr().out
    assert "note: 14 of 20 rows are training rows of 'sft'" in said  # 6 of 20 were held out
    assert main([*words, "--data", str(rows_file), "--base"]) == 0
    assert "training rows" not in capsys.readouterr().out
    assert main([*words, "--data", str(other), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["learnt"]
    assert told.startswith("14 of 21 rows have the prompt of training rows of 'sft'")
    assert main(words) == 0
    assert "training rows" not in capsys.readouterr().out


def test_what_cannot_be_is_refused(lora_run, model_folder, rows_file):
    with pytest.raises(RecipeError, match=r"no metric is called 'exact_mach'.*exact_match"):
        evaluate(Asked(str(lora_run), metrics=("exact_mach",)))
    with pytest.raises(RecipeError, match="--data FILE"):
        evaluate(Asked(str(model_folder)))
    assert main(["evaluate", str(model_folder), "--base", "--data", str(rows_file)]) == 6
    assert main(["evaluate", str(lora_run), "--set", "stages.sft.data.pathh=x"]) == 2


def test_a_file_that_is_not_there_is_named_with_its_option(lora_run, capsys):
    assert main(["evaluate", str(lora_run), "--data", "nofile.jsonl"]) == 3
    said = capsys.readouterr().err
    assert "check --data" in said
    assert "data.path" not in said


def test_the_command_writes_rows_that_compare_reads(lora_run, tmp_path, capsys):
    files = []
    for number, more in enumerate([["--base"], []]):
        files.append(str(tmp_path / f"{number}.jsonl"))
        words = ["evaluate", str(lora_run), "--metrics", "exact_match", "--output", files[-1]]
        assert main([*words, *more, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        score = told["scores"]["exact_match"]
        assert score["value"] == told["metrics"]["exact_match"]
        low, high = wilson(score["value"], 6)  # none right of six still may be a third
        assert (score["low"], score["high"], score["n"]) == (low, high, 6)
        assert len((tmp_path / f"{number}.jsonl").read_text().splitlines()) == told["rows"] == 6
    assert main(["compare", *files, "--json"]) == 0
    (test,) = json.loads(capsys.readouterr().out)["paired"][0]["tests"]
    assert (test["metric"], test["rows"]) == ("exact_match", 6)
    assert main(["evaluate", str(lora_run), "--output", files[0]]) == 2


@pytest.mark.parametrize("words", [["generate", "RUN", "say 1:"], ["evaluate", "RUN"]])
def test_a_base_that_has_changed_since_is_refused(words, lora_run, tmp_path, capsys):
    copy = tmp_path / lora_run.name
    shutil.copytree(lora_run, copy)
    args = [str(copy) if word == "RUN" else word for word in words]
    assert main(args) == 0
    lock = json.loads((copy / "lock.json").read_text())
    lock["model"]["sha256"]["model.safetensors"] = "0" * 64  # it was made with other weights
    (copy / "lock.json").write_text(json.dumps(lock))
    assert main(args) == 6
    assert "E405" in capsys.readouterr().err


@pytest.mark.parametrize("relative", [False, True])
def test_a_base_that_lies_elsewhere_now_is_named_in_the_resolved_recipe(
    relative, lora_run, model_folder, tmp_path, capsys, monkeypatch
):
    copy, moved = tmp_path / lora_run.name, tmp_path / "moved"
    shutil.copytree(lora_run, copy)
    shutil.copytree(model_folder, moved)
    monkeypatch.chdir(tmp_path)
    resolved = (copy / "resolved.yaml").read_text()
    gone = "models/base" if relative else str(tmp_path / "models/base")  # a hub id's form, too
    (copy / "resolved.yaml").write_text(resolved.replace(str(model_folder), gone))
    assert main(["generate", str(copy), "say 1:"]) == 6
    told = capsys.readouterr().err
    assert f"E405] the run's base model is no longer at '{gone}'" in told
    assert (f"seen from '{tmp_path}'" in told) == relative
    assert "as model.path into" in told
    (copy / "resolved.yaml").write_text(resolved.replace(str(model_folder), "moved"))
    assert main(["generate", str(copy), "say 1:"]) == 0
    (moved / "config.json").write_text("{}")
    assert main(["generate", str(copy), "say 1:"]) == 6
