"""The process that copies a run: what it refuses, and what is left where nobody waits for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmft.hub.remote_copy import index_of, newest, publish
from llmft.hub.remote_folder import remote_folder
from llmft.hub.run_copier import RunCopier


@pytest.fixture
def run(tmp_path) -> Path:
    (folder := tmp_path / "mine").mkdir()
    (folder / "run.json").write_text("{}")
    return folder


def test_a_run_that_began_at_the_same_time_keeps_its_copy(tmp_path, run):
    remote = remote_folder(str(tmp_path / "there"))
    publish(remote, run, index_of(run, 1, "theirs", "tiny", "step 1"), None)
    notes: list[str] = []
    copier = RunCopier(str(tmp_path / "there"), run, "tiny", notes.append)
    copier.take("step 2")
    assert "holds the run 'theirs'" in copier.finish()
    assert "step 2 is not copied" in notes[-1]
    assert newest(remote).run_id == "theirs"


def test_a_wait_that_is_broken_off_leaves_no_process_and_no_files(tmp_path, run, monkeypatch):
    copier = RunCopier(str(tmp_path / "there"), run, "tiny", lambda note: None)
    assert copier.was_given_nothing
    copier.take("step 2")
    assert not copier.was_given_nothing

    def interrupted(**_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(copier, "_answers", type("Answers", (), {
        "get": staticmethod(interrupted), "get_nowait": copier._answers.get_nowait})())  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        copier.finish()
    assert copier._process.poll() is not None
    assert [path.name for path in run.iterdir()] == ["run.json"]
