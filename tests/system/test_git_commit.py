"""The commit is read from files; git is not started."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from llmft.system.git_commit import git_commit

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
