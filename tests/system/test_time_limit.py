"""A limit on a block's time: it is interrupted in the main thread, and told elsewhere."""

from __future__ import annotations

import re
import signal
import threading
import time

import pytest

from llmft.system.time_limit import TimeUp, time_limit


def test_a_block_in_time_leaves_no_alarm():
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(5.0):
        value = 1
    assert value == 1
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before
    with time_limit(None):
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_search_without_end_is_interrupted():
    started = time.monotonic()
    with pytest.raises(TimeUp), time_limit(0.1):
        re.match(r"(a+)+$", "a" * 60 + "b")
    assert time.monotonic() - started < 5


def test_an_error_of_the_block_stays_what_it_is():
    with pytest.raises(KeyError), time_limit(5.0):
        raise KeyError("its own")
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_in_another_thread_it_is_told_afterwards():
    found: list[str] = []

    def work() -> None:
        try:
            with time_limit(0.01):
                time.sleep(0.05)
        except TimeUp:
            found.append("late")
        with time_limit(5.0):
            found.append("in time")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["late", "in time"]


def test_a_limit_around_another_one_goes_on_meanwhile():
    def blocks():
        while True:
            with time_limit(5):
                time.sleep(0.03)

    began = time.monotonic()
    with pytest.raises(TimeUp), time_limit(0.1):
        blocks()
    assert time.monotonic() - began < 1


def test_a_longer_limit_inside_of_a_shorter_one_ends_with_it():
    began = time.monotonic()
    with pytest.raises(TimeUp), time_limit(0.1), time_limit(5):
        time.sleep(2)
    assert time.monotonic() - began < 1
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
