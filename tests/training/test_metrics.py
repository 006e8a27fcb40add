"""What the loop counts: weighted means between two logs, and the report of the whole stage."""

from __future__ import annotations

import json
import math

import pytest

from llmft.training import metrics as module
from llmft.training.metrics import LoopReport, Window


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_means_are_weighted_and_tokens_are_counted_by_the_second(clock):
    window = Window()
    window.add({"loss": (6.0, 2.0), "tokens": (30.0, 2.0), "none": (0.0, 0.0)})
    window.add({"loss": (4.0, 8.0), "tokens": (10.0, 8.0)})
    clock[0] += 5
    expected = {"loss": 1.0, "tokens_per_second": 8.0}
    assert window.means(clear=False) == pytest.approx(expected)
    assert window.means(clear=True) == pytest.approx(expected)
    assert window.last_loss == 0.5
    window.add({"loss": (3.0, 1.0), "tokens": (6.0, 1.0)})
    clock[0] += 3
    assert window.means(clear=True) == pytest.approx({"loss": 3.0, "tokens_per_second": 2.0})
    assert window.means(clear=True) == {}


def test_time_in_which_nothing_was_trained_is_left_out(clock):
    """Such as an evaluation's: 40 tokens took the other 4 of 10 seconds."""
    window = Window()
    window.add({"tokens": (40.0, 1.0)})
    clock[0] += 10
    window.pause(6.0)
    assert window.means(clear=True) == pytest.approx({"tokens_per_second": 10.0})


def test_a_step_without_a_loss_leaves_the_last_one():
    window = Window()
    assert math.isnan(window.last_loss)
    window.add({"loss": (3.0, 2.0)})
    window.add({"reward": (1.0, 1.0)})
    assert window.last_loss == 1.5


@pytest.mark.parametrize("loss", [(), ((3.0, 2.0),)])
def test_a_window_goes_on_from_its_facts(loss, clock):
    window = Window()
    for one in loss:
        window.add({"loss": one, "tokens": (40.0, 1.0)})
    clock[0] += 2
    facts = json.loads(json.dumps(window.facts(), allow_nan=False))
    clock[0] += 1000
    again = Window()
    again.restore(facts)
    again.add({"loss": (5.0, 2.0), "tokens": (40.0, 1.0)})
    clock[0] += 2
    if loss:
        assert again.means(clear=True) == pytest.approx({"loss": 2.0, "tokens_per_second": 20.0})
    else:
        assert again.means(clear=True) == pytest.approx({"loss": 2.5, "tokens_per_second": 10.0})


def test_a_window_without_a_loss_yet_has_none_after_its_facts_either():
    again = Window()
    again.last_loss = 4.0
    again.restore(json.loads(json.dumps(Window().facts())))
    assert math.isnan(again.last_loss)


def test_a_report_goes_on_from_its_facts():
    report = LoopReport(steps=3, items=12, seconds=1.5, losses=[2.0, None, 1.0], skipped=1)
    again = LoopReport()
    again.restore(json.loads(json.dumps(report.facts())))
    assert again == report
    again.restore({"steps": 0, "items": 0, "seconds": 0.0, "losses": []})
    assert again == LoopReport(), "as a checkpoint of an older version has it"


@pytest.mark.parametrize(("losses", "mean"), [([2.0, 1.0], 1.5), ([2.0, None, 4.0], 3.0)])
def test_the_train_loss_is_the_mean_of_the_steps_that_have_one(losses, mean):
    assert LoopReport(losses=losses).train_loss == mean
    assert math.isnan(LoopReport(losses=[None]).train_loss)
