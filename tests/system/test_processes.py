"""One module starts programs, and they find nothing in the working folder."""

from __future__ import annotations

import ast
import os
import signal
import sys
from pathlib import Path

import llmft
from llmft.system import processes

ROOT = Path(llmft.__file__).parents[1]
STARTERS = {"Popen", "run", "call", "check_call", "check_output", "getoutput", "system", "popen"}


def test_one_module_starts_programs():
    for path in [*ROOT.glob("llmft/**/*.py"), *ROOT.glob("plugins/**/*.py")]:
        if path == ROOT / "llmft/system/processes.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                assert "subprocess" not in [name.name for name in node.names], path
            if isinstance(node, ast.ImportFrom) and node.module == "subprocess":
                assert STARTERS.isdisjoint(name.name for name in node.names), path
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os":
                assert not node.attr.startswith(("exec", "spawn", "posix_spawn")), path
                assert node.attr not in ("system", "popen"), path


def test_children_find_nothing_by_an_empty_or_relative_entry(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", ".", str(tmp_path), *sys.path])
    monkeypatch.setenv("PATH", f".:{tmp_path}::/usr/bin")
    told = processes.environment()
    assert told["PATH"] == "/usr/bin"
    assert str(tmp_path) not in told["PYTHONPATH"].split(os.pathsep)
    assert all(os.path.isabs(entry) for entry in told["PYTHONPATH"].split(os.pathsep))
    assert processes.python_command("a.b", "c")[1:] == ["-P", "-m", "a.b", "c"]
    assert os.path.isabs(processes.python_command("a")[0])


def test_a_search_path_that_means_the_folder_alone_is_left_out(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    told = processes.environment({"PATH": ".:", "LD_LIBRARY_PATH": "lib:", "OTHER": ""})
    assert "PATH" not in told  # an empty one would mean the working folder
    assert "LD_LIBRARY_PATH" not in told
    assert told["OTHER"] == ""


def test_a_module_that_takes_too_long_is_asked_to_stop(tmp_path):
    with (tmp_path / "out").open("wb") as out:
        code = processes.run_python("http.server", "0", out=out, seconds=0.5, grace=60)
        assert code == -signal.SIGTERM
        assert processes.run_python("this", out=out, seconds=60) == 0
    assert "Zen of Python" in (tmp_path / "out").read_text()
