"""Which plugin is named where foreign code fails, whatever the command is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from llmft.cli.main import main

ADAPTER = """
from llmft_adapters.lora import Lora
from llmft.api import hookimpl

class Theirs(Lora):
    method = "theirs"

    def check(self, model):
        WHAT

@hookimpl
def llmft_adapters():
    return [Theirs]
"""
TRACKER = """
from llmft.api import Tracker, TrackerConfig, hookimpl

class Mine(Tracker[TrackerConfig]):
    method, contacts = "mine", ""
    Config = TrackerConfig

@hookimpl
def llmft_trackers():
    return [Mine]
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install one distribution with an adapter that fails in `check`, and a tracker."""

    def act(what: str) -> None:
        info = tmp_path / "site" / "acme_methods-2.0.dist-info"
        package = tmp_path / "site" / "acme"
        info.mkdir(parents=True)
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "adapter.py").write_text(ADAPTER.replace("WHAT", what))
        (package / "tracker.py").write_text(TRACKER)
        (package / "deep.py").write_text("def fail():\n    raise KeyError('deep')\n")
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-methods\nVersion: 2.0\n")
        (info / "entry_points.txt").write_text(
            "[llmft.adapters]\ntheirs = acme.adapter\n[llmft.trackers]\nmine = acme.tracker\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path / "site"))

    yield act
    for name in [name for name in sys.modules if name.partition(".")[0] == "acme"]:
        del sys.modules[name]


def recipe(tmp_path: Path, model: Path) -> str:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    stage = {
        "name": "sft",
        "adapter": {"method": "theirs"},
        "alignment": {"method": "sft"},
        "data": {"method": "jsonl", "path": str(rows)},
    }
    path = tmp_path / "recipe.json"
    whole = {"recipe": 1, "name": "blame", "model": {"path": str(model)}, "stages": [stage]}
    path.write_text(json.dumps(whole | {"output_dir": str(tmp_path / "runs")}))
    return str(path)


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("raise KeyError('oh')", "KeyError: 'oh' (adapter.py:9)"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise type('Odd', (BaseException,), {})('its own')", "Odd: its own"),
        ("from acme.deep import fail; fail()", "KeyError: 'deep' (deep.py:2)"),
    ],
)
def test_of_a_package_with_several_methods_the_one_that_failed_is_named(
    command, what, said, install, tmp_path, model_folder, capsys
):
    install(what)
    assert main([command, recipe(tmp_path, model_folder)]) == 7
    error = capsys.readouterr().err
    assert error.startswith("error[E506] the adapter 'theirs' (acme-methods 2.0, with llmft")
    assert f"failed: {said}" in error
    assert "mine" not in error


def test_the_traceback_is_shown_where_it_is_asked_for(install, tmp_path, model_folder, capsys):
    install("raise KeyError('oh')")
    assert main(["plan", recipe(tmp_path, model_folder), "--traceback"]) == 7
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_cross_cutting_plugin_that_is_to_be_shown_is_told_for_what_it_is(
    tmp_path, monkeypatch, capsys
):
    info = tmp_path / "watch-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: watch\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[llmft.plugins]\nwatch = watch\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["show", "watch"]) == 2
    assert "'watch' is a cross-cutting plugin" in capsys.readouterr().err
