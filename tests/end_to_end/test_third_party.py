"""A stranger's package: installed, listed, trained by a recipe, and gone when it is removed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from llmft.cli.commands.new_plugin import write_plugin


@pytest.fixture
def installed(tmp_path) -> Path:
    """The example distribution, pip-installed into a folder of its own."""
    source, target = tmp_path / "source", tmp_path / "site"
    write_plugin("bottleneck", "adapter", str(source))
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
        "--no-index", "--target", str(target), str(source),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return target


def llmft(*args: str, site: Path) -> dict:
    """Run one command in a new process that sees the folder, and return its JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "llmft", *args, "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def adapters(site: Path) -> dict[str, str]:
    plugins = llmft("list-plugins", site=site)["plugins"]
    return {p["method"]: p["distribution"] for p in plugins if p["kind"] == "adapter"}


@pytest.mark.extended
def test_a_third_partys_adapter_trains_by_a_recipe_and_vanishes(installed, recipe, tmp_path):
    assert adapters(installed)["bottleneck"] == "llmft-bottleneck"
    recipe["stages"][0]["adapter"] = {"method": "bottleneck", "bottleneck_size": 8}
    recipe["output_dir"] = str(tmp_path / "runs")
    path = tmp_path / "recipe.yaml"
    with path.open("w") as stream:
        YAML(typ="safe").dump(recipe, stream)

    done = llmft("run", str(path), site=installed)
    result = done["stages"]["sft"]
    assert result["after"]["loss"] < result["before"]["loss"]
    lock = json.loads((Path(done["folder"]) / "lock.json").read_text())
    assert "llmft-bottleneck" in {p["distribution"] for p in lock["plugins"]}

    shutil.rmtree(installed)
    assert "bottleneck" not in adapters(installed)
    answer = llmft("validate", str(path), site=installed)
    assert answer["exit_code"] == 2
    assert "bottleneck" in answer["errors"][0]["what"]
