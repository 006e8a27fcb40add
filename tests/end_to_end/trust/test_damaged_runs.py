"""What a stage made is read only as it was written."""

from __future__ import annotations

import json

import pytest

from llmft.api.errors import CheckpointError
from llmft.cli.main import main
from llmft.runs import artifacts


def test_an_adapter_whose_last_bytes_were_changed_answers_nothing(finished, tmp_path, capsys):
    assert main(["generate", str(finished), "a"]) == 0
    file = finished / "stages/sft/adapter/adapter_model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-4] + b"\x00\x00\x80\x3f")
    capsys.readouterr()
    for words in (["generate", str(finished), "a"], ["push", str(finished), "--repo-id", "me/x"]):
        code = main(words)
        told = capsys.readouterr()
        assert code == (6 if words[0] == "generate" else 4) or "damaged" in told.err
        assert told.out == ""
    assert main(["generate", str(finished), "a"]) == 6
    assert "adapter_model.safetensors' is damaged" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="is damaged"):
        artifacts.stage_that_made("policy", finished, None, fix="")
    file.write_bytes(data)
    assert artifacts.stage_that_made("policy", finished, None, fix="").name == "sft"


def test_a_check_is_not_repeated_until_something_changes(finished, monkeypatch):
    folder, checks = finished / "stages/sft", []
    verify = artifacts.verify_stage
    monkeypatch.setattr(artifacts, "verify_stage", lambda at: (checks.append(at), verify(at)))
    artifacts._verified.clear()
    for _ in range(3):
        artifacts.verify_as_read(folder)
    assert len(checks) == 1
    (folder / "adapter/adapter_config.json").touch()
    artifacts.verify_as_read(folder)
    assert len(checks) == 2


def test_rows_that_were_changed_are_not_ranked(tmp_path, capsys):
    stage = tmp_path / "run/stages/collect"
    stage.mkdir(parents=True)
    (tmp_path / "run/run.json").write_text(json.dumps({"run_id": "r", "stages": ["collect"]}))
    row = {"prompt": "p", "completions": ["a", "b"], "answers": []}
    (stage / "rows.jsonl").write_text(json.dumps(row) + "\n")
    artifacts.save_stage(stage, "r", (), None, _result())
    assert main(["rank", str(tmp_path / "run"), "--status"]) == 0
    (stage / "rows.jsonl").write_text(json.dumps({**row, "prompt": "q"}) + "\n")
    assert main(["rank", str(tmp_path / "run"), "--status"]) == 6
    assert "is not what the stage wrote" in capsys.readouterr().err


def _result():
    from llmft.api import StageResult

    return StageResult("samples")


@pytest.mark.parametrize(("name", "text"), [
    ("run.json", "[]"), ("run.json", '{"stages": 3}'), ("run.json", '{"stages": ["../x"]}'),
    ("run.json", "[" * 99_999), ("stages/sft/result.json", '{"produces": 3}'),
    ("stages/sft/result.json", '{"produces": "policy"}'), ("lock.json", '{"model": {}}'),
    ("lock.json", '{"model": {"sha256": 3}}'), ("lock.json", '{"hub": [3], "model": []}'),
    ("lock", '{"a": 1}'),
])  # fmt: skip
def test_run_files_of_another_shape_are_named(finished, name, text, capsys):
    (finished / name).write_text(text)
    for words in (
        ["run", str(finished / "recipe.yaml"), str(finished), "--resume"],
        ["generate", str(finished), "a"],
    ):
        assert main(words) in (0, 6), words
        assert "E900" not in capsys.readouterr().err
