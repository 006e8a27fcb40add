"""When a loss is a spike or a plateau, and what follows; by hand, and under the public kit."""

from __future__ import annotations

import pytest
from llmft_callbacks.loss_watchdog import LossWatchdog

from llmft.api import StageError, TrainingStep, TrainSettings
from llmft.testing import CallbackContract


class TestLossWatchdog(CallbackContract):
    method_class = LossWatchdog
    configs = [
        {"threshold": 1e6},
        {"plateau_patience": 2, "window": 2, "min_delta": 10.0},
        {"spike_factor": 1.01, "window": 1, "patience": 1, "on_spike": "end"},
    ]


def watched(losses, **settings):
    """Return the watchdog after these losses, of the steps from 1 on."""
    watchdog = LossWatchdog(LossWatchdog.Config(method="loss_watchdog", **settings))
    for step, loss in enumerate(losses, 1):
        metrics = {} if loss is None else {"loss": loss}
        watchdog.on_step_end(TrainingStep(step, 100, {}, metrics))
        if not watchdog.should_continue():
            return step, watchdog.stop_reason()
    return None


def test_t3_a_loss_that_stays_above_the_threshold_fails():
    high = [2.0, 6.0, 7.0, 2.0, 6.0, 7.0]
    assert watched(high, threshold=5.0, patience=3) is None, "no three in a row"
    with pytest.raises(StageError) as caught:
        watched([*high, 8.0], threshold=5.0, patience=3)
    assert caught.value.exit_code == 5
    fault = caught.value.faults[0]
    assert fault.code == "E308"
    assert fault.what == ("the loss is 8 at step 7, and for 3 steps in a row above threshold: 5")
    assert "--resume" in fault.fix


def test_a_skipped_update_has_no_loss_and_breaks_no_row():
    assert watched([9.0, None, 9.0], threshold=5.0, patience=2, on_spike="end") == (
        3, "the loss is 9 at step 3, and for 2 steps in a row above threshold: 5",
    )  # fmt: skip


def test_a_spike_is_measured_by_the_losses_before_it():
    """The mean of 4 and 2 is 3: a loss of 6 is no spike at a factor of 2, one of 6.1 is."""
    assert watched([9.0, 4.0, 2.0, 6.0], spike_factor=2.0, window=2, patience=1) is None
    assert watched([4.0, 2.0, 6.1], spike_factor=2.0, window=2, patience=1, on_spike="end") == (
        3, "the loss is 6.1 at step 3, and for one step above 2 times the mean of the 2 before, 3",
    )  # fmt: skip


def test_a_spike_does_not_raise_the_mean_that_the_next_is_measured_by():
    losses = [1.0, 1.0, 8.0, 8.0, 8.0]
    assert watched(losses, spike_factor=2.0, window=2, patience=3, on_spike="end")[0] == 5


def test_no_spike_is_seen_before_the_window_is_full():
    assert watched([1.0, 50.0], spike_factor=2.0, window=3, patience=1) is None


def test_the_lower_of_two_limits_counts():
    both = {"spike_factor": 3.0, "threshold": 5.0, "window": 1, "patience": 1, "on_spike": "end"}
    assert watched([4.0, 6.0], **both)[0] == 2
    assert watched([1.0, 4.0], **both)[0] == 2


def test_a_plateau_ends_the_training():
    """Means of two: 3, 2, 2, 2.5: the second 2 is no better, and 2.5 is not."""
    assert watched([4.0, 2.0, 2.0, 2.0, 3.0], window=2, plateau_patience=2) == (
        5, "the mean loss of 2 steps is 2.5 at step 5, no better than 2 2 steps before",
    )  # fmt: skip
    assert watched([4.0, 2.0, 2.0, 1.9, 1.8], window=2, plateau_patience=2) is None
    with pytest.raises(StageError, match="E308"):
        watched([1.0, 1.0, 1.0], window=1, plateau_patience=2, on_plateau="fail")


def test_min_delta_is_the_improvement_that_counts():
    falls = [4.0, 3.9, 3.8, 3.7]
    assert watched(falls, window=1, plateau_patience=2, min_delta=0.25) == (
        3, "the loss is 3.8 at step 3, no better than 4 2 steps before",
    )  # fmt: skip
    assert watched(falls, window=1, plateau_patience=2, min_delta=0.05) is None


def test_it_goes_on_from_its_state():
    settings = {"method": "loss_watchdog", "threshold": 5.0, "patience": 2, "on_spike": "end"}
    first = LossWatchdog(LossWatchdog.Config(**settings))
    first.on_step_end(TrainingStep(1, 9, {}, {"loss": 6.0}))
    second = LossWatchdog(LossWatchdog.Config(**settings))
    second.restore(first.state())
    second.on_step_end(TrainingStep(2, 9, {}, {"loss": 6.0}))
    assert not second.should_continue()


@pytest.mark.parametrize(("settings", "said"), [
    ({}, "nothing is watched"),
    ({"threshold": 5.0, "min_delta": 0.1}, "min_delta is about plateau_patience"),
])  # fmt: skip
def test_settings_without_effect_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        LossWatchdog.Config(method="loss_watchdog", **settings)


@pytest.mark.parametrize(("settings", "key", "said"), [
    ({"plateau_patience": 5, "window": 4}, "plateau_patience",
     "4 and 5 steps pass before a plateau is seen, and there are 8"),
    ({"spike_factor": 2.0, "window": 8}, "window",
     "8 steps pass before a spike is seen, and there are 8"),
])  # fmt: skip
def test_what_could_never_be_seen_is_refused(settings, key, said):
    made = LossWatchdog(LossWatchdog.Config(method="loss_watchdog", **settings))
    ((path, what, _),) = made.check(TrainSettings(max_steps=8))
    assert (path, what) == ((key,), said)
    assert not list(made.check(TrainSettings(max_steps=9)))
    assert not list(made.check(TrainSettings()))
