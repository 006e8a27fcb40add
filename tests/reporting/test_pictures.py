"""A run's curves as PNG: each of them, as plain pictures, whatever their names hold."""

from __future__ import annotations

import json
import struct
import sys

import pytest

from llmft.api.errors import EnvironmentFault, RecipeError
from llmft.cli.main import main
from llmft.reporting.pictures import write_pictures
from llmft.reporting.run_facts import run_facts
from tests.exporting.conftest import lora_run, rows_file, train  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures by their names


def test_without_matplotlib_the_package_is_named_and_nothing_is_left(
    lora_run, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(EnvironmentFault, match=r"E206.*pip install 'llmft\[plots\]'"):
        write_pictures(lora_run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_kept(lora_run, tmp_path, capsys):
    with pytest.raises(RecipeError, match="there already"):
        write_pictures(lora_run, tmp_path)
    assert main(["report", str(lora_run), "--png", str(tmp_path)]) == 2


def test_each_curve_is_a_picture(lora_run, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    made = write_pictures(lora_run, tmp_path / "out")
    (stage,) = run_facts(lora_run).stages
    wanted = {f"sft-{name}.png" for name in stage.curves if name != "epoch"}
    assert {path.name for path in made} == wanted
    assert "sft-loss.png" in wanted
    head = (tmp_path / "out" / "sft-loss.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:]) == (1100, 680)


def test_names_are_no_formulas_and_no_paths(lora_run, tmp_path):
    pytest.importorskip("matplotlib")
    import shutil

    run = shutil.copytree(lora_run, tmp_path / "run")
    path = run / "stages" / "sft" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for step, line in enumerate(lines):
        line |= {"$\\frac{": step, "../../x": step, "a b": step, "a/b": step}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = [path.relative_to(tmp_path / "out") for path in write_pictures(run, tmp_path / "out")]
    assert all(len(path.parts) == 1 for path in made)
    assert {"sft-a_b.png", "sft-a_b_.png"} <= {str(path) for path in made}
