"""The lock of a run folder: who holds it, who is told so, and what a kill leaves."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket

import pytest

from llmft.api.errors import EnvironmentFault
from llmft.runs import locking


def test_a_lock_says_who_holds_it_and_how_far_the_run_is(tmp_path):
    path = tmp_path / "lock"
    with locking.held(tmp_path) as lock:
        assert lock.killed is None
        said = json.loads(path.read_text())
        assert (said["pid"], said["host"], said["at"]) == (
            os.getpid(), socket.gethostname(), "the start"
        )  # fmt: skip
        assert path.stat().st_mode & 0o777 == 0o600
        lock.tell("step 3")
        assert json.loads(path.read_text())["at"] == "step 3"
        lock.tell("x" * 9999)
        assert path.stat().st_size == 512
        lock.tell("step 4")
        assert json.loads(path.read_text())["at"] == "step 4"
    assert list(tmp_path.iterdir()) == []


def test_a_second_holder_is_told_of_the_first_and_takes_nothing_away(tmp_path):
    with locking.held(tmp_path, "mine"):
        said = rf"E204.*process {os.getpid()} on "
        for breaks in (False, True):
            with (
                pytest.raises(EnvironmentFault, match=said) as caught,
                locking.held(tmp_path, "mine", break_lock=breaks),
            ):
                raise AssertionError
            assert "--break-lock" not in caught.value.faults[0].fix, "the kernel knows it lives"
        assert (tmp_path / "mine").exists()
        with locking.held(tmp_path, "other"):
            pass


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"pid": 7, "at": "step 3"}'])
def test_a_file_that_nobody_holds_tells_of_a_kill(text, tmp_path):
    (tmp_path / "lock").write_text(text)
    with locking.held(tmp_path) as lock:
        assert lock.killed == (json.loads(text) if "pid" in text else {})
    assert not (tmp_path / "lock").exists()


HERE = {"pid": 1, "host": socket.gethostname(), "boot": locking.boot_id(), "started": "now"}


def no_locks(monkeypatch, number: int = errno.ENOLCK) -> None:
    def flock(handle, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize(
    ("holder", "alive"),
    [
        (HERE, True),
        (HERE | {"pid": os.getpid()}, True),
        (HERE | {"pid": 2**22 + 1}, False),
        (HERE | {"pid": "odd"}, False),
        ({k: v for k, v in HERE.items() if k != "pid"}, False),
        (HERE | {"boot": "another"}, False),
        (HERE | {"boot": None}, True),
        (HERE | {"host": "another", "boot": "another"}, True),
    ],
)
def test_where_the_file_system_knows_no_locks_a_holder_that_may_live_is_believed(
    holder, alive, tmp_path, monkeypatch
):
    assert locking._may_live(holder) is alive
    no_locks(monkeypatch)
    holder = {"pid": 0, **holder}
    (tmp_path / "lock").write_text(json.dumps(holder))
    if holder["pid"] == 0:
        return
    if alive:
        with pytest.raises(EnvironmentFault, match="--break-lock"), locking.held(tmp_path):
            raise AssertionError
        assert (tmp_path / "lock").exists()
    with locking.held(tmp_path, break_lock=alive) as lock:
        assert lock.killed == holder


def test_a_process_of_another_user_may_live(monkeypatch):
    def kill(pid, number):
        assert (pid, number) == (1, 0)
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    assert locking._may_live(HERE) is True


def test_another_refusal_of_the_file_system_is_told(tmp_path, monkeypatch):
    no_locks(monkeypatch, errno.EIO)
    with pytest.raises(EnvironmentFault, match="E202"), locking.held(tmp_path):
        raise AssertionError


def test_without_a_file_there_is_nobody_to_ask_where_no_locks_are(tmp_path, monkeypatch):
    no_locks(monkeypatch)
    with locking.held(tmp_path) as lock:
        assert lock.killed is None
