"""What the command-line tests share: llmft as if installed, a recipe, and a way to run commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from llmft.cli.main import main

ROOT = Path(__file__).parents[2]
RECIPE = """# A recipe of one stage.
recipe: 1
name: tiny
model: {path: embedded:model}
stages:
  - name: sft
    adapter: {method: lora, r: 4}
    alignment: {method: sft}
    data: {method: triviaqa}
    train: {max_steps: 2}
"""


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> dict[str, Any]:
        """What `--json` printed."""
        found: dict[str, Any] = json.loads(self.out)
        return found


@pytest.fixture(scope="session")
def metadata_path(tmp_path_factory) -> Path | None:
    """A folder with llmft's metadata as pip would write it; None where it is installed."""
    try:
        metadata.version("llmft")
        return None
    except metadata.PackageNotFoundError:
        pass
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    folder: Path = tmp_path_factory.mktemp("metadata")
    info = folder / "llmft-0.dist-info"
    info.mkdir()
    needs = "".join(f"Requires-Dist: {line}\n" for line in project["dependencies"])
    version = f"Version: {project['version']}\n"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: llmft\n{version}{needs}")
    groups = "".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    )
    (info / "entry_points.txt").write_text(groups)
    return folder


@pytest.fixture(autouse=True)
def installed(metadata_path, monkeypatch) -> None:
    """Make the builtin methods discoverable, here and in processes that are started."""
    if metadata_path is not None:
        monkeypatch.syspath_prepend(str(metadata_path))
        places = [str(metadata_path), *filter(None, [os.environ.get("PYTHONPATH")])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))


@pytest.fixture
def recipe(tmp_path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def llmft(capsys) -> Callable[..., Ran]:
    """Run a command line in this process."""

    def run(*args: str) -> Ran:
        capsys.readouterr()
        code = main(args)
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture
def process() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command line in a process of its own."""

    def run(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "llmft", *args]
        options = {"env": dict(os.environ), "capture_output": True, "text": True} | options
        return subprocess.run(command, timeout=60, **options)

    return run
