"""Work in a process beside ours, with bounds of time and memory."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from llmft.system.bounded_child import BoundedChild, OutOfBounds, WorkFailed


def work(question):
    kind, value = question
    match kind:
        case "echo":
            return value
        case "loop":
            while True:
                pass
        case "fill":
            return len("x" * value)
        case "raise":
            raise ValueError(value)
        case "files":
            return sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1]
        case "write":
            try:
                with open(value, "w") as file:
                    file.write("x")
            except OSError as error:
                return error.strerror
            return "written"
        case "pid":
            return os.getpid()


@pytest.fixture
def child():
    return BoundedChild(work, 0.5, 200)


def test_answers_come_back_in_step(child):
    for value in (1, "é\ud800", [1, [2.5, None]], {"a": (1, 2)}, "x" * 3_000_000, b"\0"):
        assert child.ask(("echo", value)) == value
    with pytest.raises(WorkFailed, match="no") as caught:
        child.ask(("raise", "no"))
    assert caught.value.kind == "ValueError"
    first = child.ask(("pid", None))
    with pytest.raises(OutOfBounds, match=r"did not end within 0\.5 seconds"):
        child.ask(("loop", None))
    assert not os.path.exists(f"/proc/{first}")
    with pytest.raises(OutOfBounds, match="more than 200 MB"):
        child.ask(("fill", 400_000_000))
    assert child.ask(("echo", 2)) == 2


def test_a_signal_between_question_and_answer_leaves_nothing_behind():
    child = BoundedChild(work, 30.0, 200)  # the signal comes first, however busy the machine is

    def leave(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, leave)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            child.ask(("loop", None))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert child.ask(("echo", "after")) == "after"


def test_it_holds_no_lock_or_file_of_ours_and_writes_none(child, tmp_path):
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert len(child.ask(("files", None))) <= 5
    with open(tmp_path / "lock", "w") as again:
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert child.ask(("write", str(tmp_path / "out"))) != "written"
    assert child.ask(("pid", None)) != os.getpid()


def test_it_ends_when_its_parent_is_killed(tmp_path):
    code = (
        "import os, sys, time\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "from test_bounded_child import work\n"
        "from llmft.system.bounded_child import BoundedChild\n"
        "child = BoundedChild(work)\n"
        "print(child.ask(('pid', None)), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pid, deadline = int(done.stdout), time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")
