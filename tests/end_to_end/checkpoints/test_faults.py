"""A crash or a full disk at any file-system event, and a kill at any time: nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from tests.end_to_end.checkpoints.faults import CRASH
from tests.end_to_end.checkpoints.harness import state_of
from tests.extended import extended

SAMPLED = random.Random(5).sample(range(10, 120), 4)


def crash_and_resume(go, recipe, whole, n: int) -> bool:
    """Crash at the n-th event, resume, compare; return whether there was such an event."""
    crashed = go(recipe, f"at-{n}", fault={"kind": "crash", "at": n})
    if crashed.code == 0:
        return False
    assert crashed.code == CRASH, crashed.text
    resumes = (crashed.folder / "run.json").is_file()
    after = go(recipe, f"at-{n}", resume=resumes)
    assert after.code == 0, (n, after.text)
    assert state_of(after.folder) == state_of(whole.folder), n
    left = list(after.folder.rglob(".staging-*")) if resumes else []
    assert not left, (n, left)
    return True


def fill_and_resume(go, recipe, whole, n: int) -> bool:
    """Let the disk be full from the n-th event on, resume with space again, compare."""
    full = go(recipe, f"full-{n}", fault={"kind": "full", "at": n})
    if full.code == 0:
        return False
    assert full.code == 4, (n, full.text)
    errors = [line for line in full.text.splitlines() if "error[" in line]
    assert len(errors) == 1, full.text
    assert "E202" in errors[0]
    assert "MB free" in full.text
    assert "Traceback" not in full.text
    assert not list(full.folder.rglob(".staging-*")), n
    resumes = (full.folder / "run.json").is_file()
    after = go(recipe, f"full-{n}", resume=resumes)
    assert after.code == 0, (n, after.text)
    assert state_of(after.folder) == state_of(whole.folder), n
    return True


@pytest.mark.parametrize("n", extended(SAMPLED, SAMPLED[:1]))
def test_t10_a_crash_at_a_file_system_event_loses_nothing(go, recipe, whole, n):
    assert crash_and_resume(go, recipe, whole, n)


@pytest.mark.parametrize("n", extended(SAMPLED[1:], SAMPLED[1:2]))
def test_t11_a_full_disk_is_told_in_one_line_and_loses_nothing(go, recipe, whole, n):
    assert fill_and_resume(go, recipe, whole, n)


@pytest.mark.slow
def test_t10_a_crash_at_every_file_system_event_loses_nothing(go, recipe, whole):
    n = 1
    while crash_and_resume(go, recipe, whole, n):
        n += 1
    assert n > len(whole.events)


@pytest.mark.slow
def test_t11_a_full_disk_at_every_file_system_event_loses_nothing(go, recipe, whole):
    n = 1
    while fill_and_resume(go, recipe, whole, n):
        n += 1
    assert n > 100


def kill_at_random(go, recipe, whole, seed: int, grace: bool) -> None:
    """Kill a run three times at random (with `grace`: SIGTERM, then too short a wait)."""
    chance = random.Random(seed)

    def kill(pid: int) -> None:
        time.sleep(chance.uniform(0.05, 1.0))
        if grace:
            os.kill(pid, signal.SIGTERM)
            time.sleep(chance.uniform(0.0, 0.03))
        os.kill(pid, signal.SIGKILL)

    place, resumes = f"random-{seed}", False
    for _ in range(3):
        slow = {"kind": "seconds", "at": 60}
        ended = go(recipe, place, resume=resumes, fault=slow, kill=kill)
        # A signal that comes before the run has begun ends the process, as it would any other.
        assert ended.code in (-signal.SIGKILL, -signal.SIGTERM, 143, 0), ended.text
        resumes = (ended.folder / "run.json").is_file()
    last = go(recipe, place, resume=resumes)
    assert last.code == 0, last.text
    assert state_of(last.folder) == state_of(whole.folder)


@pytest.mark.parametrize("seed", [1])
def test_t9_kills_at_random_times_lose_nothing(go, recipe, whole, seed):
    kill_at_random(go, recipe, whole, seed, grace=False)


def test_t8_a_grace_too_short_for_a_save_loses_nothing(go, recipe, whole):
    kill_at_random(go, recipe, whole, 3, grace=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 30))
def test_t9_many_kills_at_random_times_lose_nothing(go, recipe, whole, seed):
    kill_at_random(go, recipe, whole, seed, grace=seed % 2 == 0)
