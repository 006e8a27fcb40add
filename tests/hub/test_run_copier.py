"""The process that copies a run: what it refuses, and what is left where nobody waits for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmft.hub.remote_copy import index_of, newest, publish
from llmft.hub.remote_folder import remote_folder
from llmft.hub.run_copier import RunCopier
from llmft.system import fsio


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


def saved(run: Path, step: int) -> None:
    with fsio.staged_folder(run / f"stages/sft/checkpoints/step-{step}", "mine") as staged:
        (staged / "state.json").write_text(str(step))


def test_the_newest_checkpoint_is_copied_and_the_best_and_what_was_copied_before(tmp_path, run):
    remote, copier = remote_folder(there := str(tmp_path / "there")), None
    for step, best, steps in ((4, 2, "24"), (5, 2, "245")):
        for number in range(1, step + 1) if step == 4 else (step,):
            saved(run, number)
        copier = copier or RunCopier(there, run, "tiny", lambda note: None)
        copier.checkpoint("sft", step, best)
        while copier._copying:
            copier._hear(copier._answers.get(timeout=60))
        found = {path.split("/")[3] for path in newest(remote).files if "step-" in path}
        assert found == {f"step-{number}" for number in steps}
    assert copier.finish() == ""


def test_only_the_newest_state_waits_for_a_copy_that_is_made(tmp_path, run):
    copier = RunCopier(str(tmp_path / "there"), run, "tiny", lambda note: None)
    copier._copying = (0, "step 1", 0)  # by a process that is not there
    for step in (2, 3):
        copier.take(f"step {step}")
    assert copier._waiting[1] == "step 3"
    assert [path.name for path in (run / ".staging-copies").iterdir()] == ["2"]
    copier._copying = None
    copier._send()
    assert copier.finish() == ""
    assert newest(remote_folder(str(tmp_path / "there"))).at == "step 3"
