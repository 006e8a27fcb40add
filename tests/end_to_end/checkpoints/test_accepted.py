"""What a person may accept on a resume, who is to blame, and what is never written."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle
import pickletools
import signal
import socket
import tempfile
from pathlib import Path

import pytest

from llmft.api.errors import EnvironmentFault
from llmft.runs import locking
from tests.end_to_end.checkpoints.harness import state_of, tree


def at(step: int) -> dict:
    return {"kind": "signal", "number": signal.SIGKILL, "at": step, "phase": "train"}


def test_d13_rows_that_changed_can_be_accepted(go, recipe, tmp_path):
    rows = tmp_path / "rows.jsonl"
    text = "".join(json.dumps({"prompt": f"{n}", "completion": "x"}) + "\n" for n in range(18))
    rows.write_text(text)
    recipe["stages"][0]["data"]["path"] = str(rows)
    go(recipe, "data", fault=at(3))
    rows.write_text(text.replace("17", "71"))
    refused = go(recipe, "data", resume=True)
    assert refused.code == 6
    assert "--accept-data-change" in refused.text
    taken = go(recipe, "data", resume=True, words=("--accept-data-change",))
    assert taken.code == 0, taken.text
    assert "not bit-exact: train rows of the stage has changed" in taken.text
    assert "continues after step 2" in taken.text


@pytest.mark.extended
def test_d13_a_finished_run_notices_other_rows_and_loses_nothing(go, recipe, tmp_path):
    rows = tmp_path / "rows.jsonl"
    text = "".join(json.dumps({"prompt": f"{n}", "completion": "x"}) + "\n" for n in range(18))
    rows.write_text(text)
    recipe["stages"][0]["data"]["path"] = str(rows)
    done = go(recipe, "done")
    made = tree(done.folder / "stages" / "sft")
    rows.write_text(text.replace("17", "71"))
    again = go(recipe, "done", resume=True)
    assert again.code == 0, again.text
    assert "sft: runs again, because something that it depends on has changed" in again.text
    assert tree(done.folder / "replaced" / "sft-1") == made
    third = go(recipe, "done", resume=True)
    assert "already finished" in third.text


@pytest.mark.extended
def test_p4_code_that_changed_can_be_accepted(go, recipe, whole):
    killed = go(recipe, "code", fault=at(3))
    path = killed.folder / "lock.json"
    provenance = json.loads(path.read_text())
    next(p for p in provenance["plugins"] if p["kind"] == "adapter")["sha256"] = "0" * 64
    path.write_text(json.dumps(provenance))
    refused = go(recipe, "code", resume=True)
    assert refused.code == 6
    assert "--accept-plugin-change" in refused.text
    taken = go(recipe, "code", resume=True, words=("--accept-plugin-change",))
    assert taken.code == 0, taken.text
    assert "not bit-exact: code of the adapter lora 00000000 ->" in taken.text
    assert state_of(taken.folder) == state_of(whole.folder)  # it was the same in truth


def test_c9_c10_what_exactness_does_not_cover_is_in_the_lock_and_told(go, recipe):
    killed = go(recipe, "ground", fault=at(3))
    path = killed.folder / "lock.json"
    provenance = json.loads(path.read_text())
    provenance |= {"torch_threads": 7, "device": "NVIDIA H200", "torch_build": "another build"}
    provenance["packages"]["torch"] = "2.0.0"
    path.write_text(json.dumps(provenance))
    resumed = go(recipe, "ground", resume=True)
    assert resumed.code == 0, resumed.text
    said = " ".join(resumed.text.split())
    assert "not bit-exact:" in said
    for told in ("torch_threads 7 -> 1", "device NVIDIA H200 ->", "torch 2.0.0 ->"):
        assert told in said
    changes = json.loads((resumed.folder / "run.json").read_text())["resumed"][0]["changes"]
    assert len(changes) == 4


@pytest.fixture
def no_locks(monkeypatch):
    """A file system that knows no locks, as some networks'."""

    def flock(handle, how):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


def left_by(folder, **holder) -> None:
    known = {"pid": os.getpid(), "host": socket.gethostname(), "boot": locking.boot_id()}
    text = json.dumps({**known, "started": "yesterday", "at": "step 3", **holder})
    (folder / "lock").write_text(text.ljust(511) + "\n")


@pytest.mark.parametrize("holder", [{"host": "elsewhere"}, {}], ids=["another host", "alive here"])
def test_o2_without_locks_a_holder_that_may_live_is_named_and_can_be_overruled(
    tmp_path, no_locks, holder
):
    left_by(tmp_path, **holder)
    with pytest.raises(EnvironmentFault) as caught, locking.held(tmp_path):
        pass
    (fault,) = caught.value.faults
    assert f"process {os.getpid()} on " in fault.what
    assert "--break-lock" in fault.fix
    with locking.held(tmp_path, break_lock=True) as lock:
        assert lock.killed["at"] == "step 3"


@pytest.mark.parametrize("holder", [{"pid": 2**22 + 1}, {"boot": "before"}])
def test_o2_a_holder_that_is_gone_for_sure_holds_nothing(tmp_path, no_locks, holder):
    left_by(tmp_path, **holder)
    with locking.held(tmp_path) as lock:
        assert lock.killed["at"] == "step 3"


def test_o2_a_lock_that_the_kernel_vouches_for_cannot_be_broken(tmp_path):
    with (
        locking.held(tmp_path),
        pytest.raises(EnvironmentFault) as caught,
        locking.held(tmp_path, break_lock=True),
    ):
        pass
    assert "--break-lock" not in caught.value.faults[0].fix


def test_s3_no_file_of_a_run_is_a_pickle(whole):
    """By content: whatever its name, no file is a program for pickle's machine."""
    for path in whole.folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not data.startswith((b"\x80", b"PK"))
            assert not _is_pickle(data)


def _is_pickle(data: bytes) -> bool:
    try:
        return bool(list(pickletools.genops(data)))
    except (ValueError, UnicodeDecodeError, IndexError):
        return False


def test_s3_a_pickle_would_be_recognised():
    assert _is_pickle(pickle.dumps({"a": 1}, protocol=0))
    assert _is_pickle(pickle.dumps({"a": 1}))


def test_o5_the_run_folder_may_be_on_another_disk_than_temporary_files(go, recipe, whole):
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no second file system here")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        done = go(recipe, "elsewhere", words=("--output-dir", other))
        assert done.code == 0, done.text
        (run,) = Path(other).rglob("run.json")
        folder = run.parent
        assert state_of(folder) == state_of(whole.folder)


def test_o3_a_new_run_touches_nothing_that_is_there(go, recipe):
    first = go(recipe, "two")
    stranger = first.folder.parent / "notes.txt"
    stranger.write_text("mine")
    before = tree(first.folder)
    second = go(recipe, "two")
    assert second.code == 0
    assert second.folder != first.folder
    assert tree(first.folder) == before
    assert stranger.read_text() == "mine"


def test_t13_the_time_of_a_save_is_in_the_log(whole):
    log = (whole.folder / "log.txt").read_text()
    for step in (2, 4, 6):
        assert f"checkpoint step-{step} written in " in log


def test_t11_a_full_disk_tells_what_is_needed_and_what_is_free(go, recipe, whole):
    saves = [n for n, name in enumerate(whole.events, start=1) if name == "write"]
    full = go(recipe, "full", fault={"kind": "full", "at": saves[-8]})  # a checkpoint's weights
    assert full.code == 4
    line = next(line for line in full.text.splitlines() if "error[" in line)
    assert "MB free" in line
    assert " bytes needed, " in line


def test_s2_no_secret_of_the_environment_is_in_anything_that_is_written(
    server, canaries, whole, tmp_path, recipe
):
    found = canaries.Canaries()
    found.search(whole.folder)
    assert found.provoke(server, recipe, tmp_path / "provoked") == []
    assert found.found == []
    assert found.files > 30
    (tmp_path / "leak.txt").write_text(f"token: {canaries.PLANTED['HF_TOKEN']}")
    found.search(tmp_path)
    assert found.found == ["HF_TOKEN in leak.txt"]  # it would have been seen
