"""What the timeline keeps of a phase's speed."""

from __future__ import annotations

from llmft.engine.recorder import Pace


def test_a_phase_s_speed_is_kept_in_units_and_their_seconds():
    pace = Pace()
    for done, at in ((0, 10.0), (1, 14.0), (2, 15.0), (4, 16.0)):
        pace.add(done, 8, at)
    assert pace.told() == {"done": 4, "total": 8, "pace": [4.0, 1.0, 0.5]}


def test_a_long_phase_is_kept_in_ten_parts_that_cover_it():
    pace = Pace()
    for step in range(5001):
        pace.add(step, 5000, step * 0.5 if step < 2500 else 1250 + (step - 2500) * 2.0)
    told = pace.told()
    assert told["done"] == 5000
    assert len(told["pace"]) == 10
    assert told["pace"][:4] == [0.5] * 4
    assert told["pace"][-4:] == [2.0] * 4


def test_a_phase_that_begins_again_goes_on_counting():
    pace = Pace()
    for done, at in ((0, 0.0), (5, 5.0), (0, 5.0), (5, 10.0)):
        pace.add(done, 5, at)
    assert pace.told() == {"done": 10, "total": 5, "pace": [1.0, 1.0]}


def test_a_phase_without_units_tells_none():
    pace = Pace()
    pace.add(0, 1, 3.0)
    assert pace.told() == {}
