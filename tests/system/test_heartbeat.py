"""Signs of life: who has stalled, and where, told by what each process wrote last."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from llmft.api.errors import EnvironmentFault, StageError
from llmft.system import distributed, heartbeat
from llmft.system.heartbeat import Heartbeat
from llmft.system.launcher import Launch


class Store(dict):
    """A store of torch.distributed's, as far as signs of life use it."""

    set = dict.__setitem__

    def check(self, keys):
        return all(key in self for key in keys)


@pytest.fixture
def pair():
    store = Store()
    return [Heartbeat(store, Launch(rank, 2), 120.0) for rank in (0, 1)]  # a beat in 5 s


def beats(*processes: Heartbeat, times: int) -> None:
    for _ in range(times):
        for process in processes:
            process.exchange()
            process.judge()


def test_a_process_that_shows_no_sign_of_life_is_named_with_its_last_stack(pair, capfd):
    first, second = pair
    beats(first, second, times=30)
    assert capfd.readouterr().err == ""
    beats(first, times=8)
    assert capfd.readouterr().err == ""
    beats(first, times=12)
    told = capfd.readouterr().err
    assert told.count("\n") == 1  # once, not at every beat
    assert told.startswith("note: rank 1 shows no sign of life for 40 s; it was last at ")
    assert "(exchange)" in told
    assert "test_heartbeat.py" in told
    assert told.endswith("the run ends after 120 s of it (LLMFT_STALL_SECONDS)\n")
    with first.meeting():
        pass
    beats(first, times=5)
    with pytest.raises(StageError, match=r"E306.*rank 1 shows no sign of life for 12\d s"):
        first.meeting().__enter__()


def test_a_process_that_comes_back_is_waited_for_again(pair):
    first, second = pair
    beats(first, times=20)
    beats(first, second, times=1)
    beats(first, times=20)
    assert first.lost == ""


def test_a_process_that_lives_and_does_not_come_is_named(pair, capfd):
    first, second = pair
    with first.meeting():
        beats(first, second, times=9)
        assert "note: rank 1 keeps the others waiting for 40 s; it is at " in capfd.readouterr().err
        assert "rank 1 keeps the others waiting" in first.missing()
        with second.meeting():
            beats(second, first, times=20)
    assert capfd.readouterr().err == ""


def test_what_the_first_process_does_alone_may_take_its_time(pair, capfd):
    first, second = pair
    with second.meeting(patient=True):
        beats(first, second, times=100)
    assert capfd.readouterr().err == ""
    assert second.lost == ""


def test_a_worker_that_waits_for_a_lost_first_process_ends(pair, capfd, monkeypatch):
    ended = []
    monkeypatch.setattr(heartbeat.os, "_exit", ended.append)
    first, second = pair
    beats(first, second, times=1)
    with second.meeting(patient=True):
        beats(second, times=24)
    assert ended == [5]
    assert "process 1 of 2: error[E306] rank 0 shows no sign of life" in capfd.readouterr().err


def test_a_store_that_hangs_with_the_first_process_is_its_silence(pair):
    first, second = pair
    beats(first, second, times=2)
    for _ in range(30):
        second.judge()  # while whoever asks the store waits for it
    assert second.lost.startswith("rank 0 shows no sign of life")


def test_a_suspended_job_has_missed_no_beat(pair):
    """Time is counted in own beats: hours in which none of the processes ran are none."""
    first, second = pair
    beats(first, second, times=2)
    assert json.loads(first.store["llmft/heartbeat/1"])["beat"] == 2
    assert first._seen[1].silent <= 1


@pytest.mark.parametrize(("text", "seconds"), [("", 1800.0), ("90", 90.0)])
def test_the_time_is_stated_in_the_environment(text, seconds):
    assert heartbeat.limit({"LLMFT_STALL_SECONDS": text}) == seconds


@pytest.mark.parametrize("text", ["soon", "0", "-5", "nan", "1e9"])
def test_a_time_that_is_none_is_refused(text):
    with pytest.raises(EnvironmentFault, match=r"E210.*LLMFT_STALL_SECONDS"):
        heartbeat.limit({"LLMFT_STALL_SECONDS": text})


def test_a_process_that_fails_leaves_the_store_alone(pair, monkeypatch):
    here, _ = pair
    monkeypatch.setattr(distributed, "_joined", SimpleNamespace(heartbeat=here))
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    assert not here._ended.is_set()
    with pytest.raises(KeyError), distributed.joined(here.here):
        raise KeyError("a stage")
    assert here._ended.is_set()
