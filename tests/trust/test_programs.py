"""No program runs, and no module is imported, that the user did not install."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from conftest import ran

import llmft
from llmft.system import processes
from llmft.system.git_commit import git_commit

ROOT = Path(llmft.__file__).parents[1]
STARTERS = {"Popen", "run", "call", "check_call", "check_output", "getoutput", "system", "popen"}
RECIPE = """
recipe: 1
name: t
model: {path: "embedded:model"}
stages:
  - name: sft
    adapter: {method: lora, r: 2}
    alignment: {method: sft}
    data: {method: triviaqa, path: "embedded:trivia", limit: 16}
    train: {max_steps: 1}
trackers: [{method: jsonl}, {method: wandb, mode: offline}]
"""
EVERY_COMMAND = """
import os, sys, glob
from llmft.cli.main import main
codes = {}
def llmft(*words, wanted=0):
    code = main(list(words))
    if code != wanted:
        sys.exit(f"{words}: {code}")
llmft("version")
llmft("list-plugins")
llmft("list-recipes")
llmft("show", "lora")
llmft("explain", "E001")
llmft("schema")
llmft("doctor", "--deep")
llmft("import", "python dora.py --lora_r 8", wanted=2)
llmft("validate", "r.yaml", "--deep")
llmft("plan", "r.yaml")
llmft("run", "r.yaml", "--quiet")
run = glob.glob("runs/t/*")[0]
llmft("run", "r.yaml", run, "--resume", "--quiet")
llmft("run", "r.yaml", "--smoke", "--quiet")
llmft("generate", run, "Which country?")
llmft("score", run, "rows.jsonl", wanted=6)
llmft("rank", "s.jsonl", "--status")
llmft("push", run, "--repo-id", "me/x", wanted=4)
llmft("verify", "resume", "r.yaml", "--kills", "1", "--steps", "2")
"""


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


def test_hostile_files_of_every_kind_are_not_used_by_any_command(hostile):
    (hostile / "r.yaml").write_text(RECIPE)
    (hostile / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    sample = {"prompt": "p", "completions": ["a", "b"], "answers": []}
    (hostile / "s.jsonl").write_text(json.dumps(sample) + "\n")
    place = hostile.parent / "bin"  # as a console script lies
    place.mkdir()
    (place / "every.py").write_text(EVERY_COMMAND)
    names = ("HF_TOKEN", "WANDB_API_KEY", "WANDB_BASE_URL")
    variables = {k: v for k, v in os.environ.items() if k not in names}
    variables |= {"HF_HUB_OFFLINE": "1", "HOME": str(hostile.parent), "LLMFT_CACHE": "off"}
    # The user's own environment may mean the working folder without saying so.
    variables["PATH"] = os.pathsep.join([".", "", os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, str(place / "every.py")],
        cwd=hostile, env=variables, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert ran(hostile) == []
    lock = next(hostile.glob("runs/t/*/lock.json"))
    assert json.loads(lock.read_text())["git"] == {"commit": "a1" * 20}


def test_python_m_does_not_import_from_the_working_folder(hostile):
    (hostile / "llmft.py").unlink()  # what `python -m` itself looks for
    done = subprocess.run(
        [sys.executable, "-m", "llmft", "version"],
        cwd=hostile, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("llmft "), done.stderr
    assert ran(hostile) == []


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


def test_a_tool_in_the_working_folder_is_not_the_systems(monkeypatch, hostile):
    monkeypatch.chdir(hostile)
    monkeypatch.setenv("PATH", f".:{hostile}")
    assert processes.answer_of("nvidia-smi", seconds=5) is None
    monkeypatch.setenv("PATH", os.pathsep.join([".", os.environ["PATH"], "/bin", "/usr/bin"]))
    assert processes.answer_of("uname", "-s", seconds=5) == f"{os.uname().sysname}\n"
    assert ran(hostile) == []


# --- the commit, read from files -------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def repository(folder: Path, head: str = "ref: refs/heads/main") -> Path:
    git = folder / ".git"
    (git / "refs/heads").mkdir(parents=True)
    (git / "HEAD").write_text(f"{head}\n")
    return git


def test_the_commit_is_found_where_git_keeps_it(tmp_path):
    git = repository(tmp_path)
    assert git_commit(tmp_path) is None  # nothing was committed yet
    (git / "packed-refs").write_text(
        f"# pack-refs\n{'b' * 40} refs/heads/x\n{COMMIT} refs/heads/main\n"
    )
    assert git_commit(tmp_path) == COMMIT
    (git / "refs/heads/main").write_text(f"{'c' * 40}\n")
    (tmp_path / "deep/er").mkdir(parents=True)
    assert git_commit(tmp_path / "deep/er") == "c" * 40
    (git / "HEAD").write_text("d" * 40)
    assert git_commit(tmp_path) == "d" * 40


def test_a_worktree_says_where_its_repository_is(tmp_path):
    git = repository(tmp_path / "main")
    (git / "refs/heads/side").write_text(f"{COMMIT}\n")
    own = git / "worktrees/side"
    own.mkdir(parents=True)
    (own / "HEAD").write_text("ref: refs/heads/side\n")
    (own / "commondir").write_text("../..\n")
    (tmp_path / "side").mkdir()
    (tmp_path / "side/.git").write_text(f"gitdir: {own}\n")
    assert git_commit(tmp_path / "side") == COMMIT


@pytest.mark.parametrize("head", [
    "ref: ../../secret", "ref: refs/../../../secret", "ref: /etc/passwd", "", "ref:", "x" * 100_000,
])  # fmt: skip
def test_an_odd_head_names_no_commit(tmp_path, head):
    (tmp_path / "secret").write_text(COMMIT)
    repository(tmp_path, head)
    assert git_commit(tmp_path) is None


def test_a_pipe_or_a_device_in_place_of_a_file_does_not_hang(tmp_path):
    git = repository(tmp_path)
    os.mkfifo(git / "refs/heads/main")
    (git / "packed-refs").symlink_to("/dev/zero")
    assert git_commit(tmp_path) is None


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git to compare with")
def test_it_is_the_commit_that_git_says(tmp_path):
    def git(*words: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "a")
    assert git_commit(tmp_path) == git("rev-parse", "HEAD").strip()
    git("pack-refs", "--all")
    git("checkout", "-q", "-b", "other/branch")
    assert git_commit(tmp_path) == git("rev-parse", "HEAD").strip()
