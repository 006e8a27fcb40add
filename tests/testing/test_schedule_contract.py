"""The contract kit fails on schedules that break the contract, and on these only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmft.api import Schedule, ScheduleConfig
from llmft.testing import ScheduleContract

Catches = Callable[..., None]


class Straight(Schedule[ScheduleConfig]):
    """A straight rise and a straight fall."""

    method = "straight"
    Config = ScheduleConfig

    def factor(self, step: int, span: Any) -> float:
        if step < span.warmup_steps:
            return step / span.warmup_steps
        return (span.steps - step) / max(1, span.steps - span.warmup_steps)


class Halving(Schedule[ScheduleConfig]):
    """Half the rate after each score that is no better."""

    method = "halving"
    Config = ScheduleConfig
    supports_warmup = False
    depends_on_steps = False
    follows_scores = True
    best: float | None = None
    halved = 0

    def factor(self, step: int, span: Any) -> float:
        return float(0.5 ** min(self.halved, 8))

    def scored(self, value: float, span: Any) -> None:
        value = -value if span.greater_is_better else value
        if self.best is not None and value >= self.best:
            self.halved += 1
        self.best = value if self.best is None else min(value, self.best)

    def state(self) -> Any:
        return {"best": self.best, "halved": self.halved}

    def restore(self, state: Any, span: Any) -> None:
        self.best, self.halved = state["best"], state["halved"]


class TestStraight(ScheduleContract):
    method_class = Straight


class TestHalving(ScheduleContract):
    method_class = Halving


class DividesByTheRest(Straight):
    """Divides by the steps that are left, of which the last has none."""

    def factor(self, step: int, span: Any) -> float:
        return 1 / (span.steps - step)


class BelowZero(Straight):
    """Falls on below 0."""

    def factor(self, step: int, span: Any) -> float:
        return super().factor(step, span) - 0.01


class NotANumber(Straight):
    """Has no number at the end."""

    def factor(self, step: int, span: Any) -> float:
        return super().factor(step, span) if step < span.steps else float("nan")


class GivesTheRate(Straight):
    """Gives a rate that grows with the step, where a factor of the peak is wanted."""

    def factor(self, step: int, span: Any) -> float:
        return 1.0 + step


class Nothing(Straight):
    """Never trains."""

    def factor(self, step: int, span: Any) -> float:
        return 0.0


class NoWarmUp(Straight):
    """Says that it has a warm-up, and has none."""

    def factor(self, step: int, span: Any) -> float:
        return 1.0


class SaysSteady(Straight):
    """Says that its rates do not depend on the number of steps."""

    depends_on_steps = False


class CountsItself(Straight):
    """Counts how often it is asked, in place of looking at the step."""

    asked = -1

    def factor(self, step: int, span: Any) -> float:
        self.asked += 1
        return float(0.9**self.asked)


class ForgetsTheBest(Halving):
    """Leaves part of its state out."""

    def state(self) -> Any:
        return {"halved": self.halved}

    def restore(self, state: Any, span: Any) -> None:
        self.halved = state["halved"]


class StateNoJson(Halving):
    """Has a state that no file of JSON holds."""

    def state(self) -> Any:
        return {"best": {self.best}}


class ListensUnasked(Halving):
    """Follows scores that it is told of in no run."""

    follows_scores = False


class OneRate(Straight):
    """Gives one rate for all groups."""

    def rates(self, step: int, base: Any, span: Any) -> Any:
        return [base[0] * self.factor(step, span)]


class RefusesAll(Straight):
    """Refuses plain settings."""

    def check(self, train: Any) -> Any:
        yield ("lr_scheduler_type",), "not today", "come again"


class YieldsText(Straight):
    """Yields a text where a refusal is wanted."""

    def check(self, train: Any) -> Any:
        yield "too much"


class SmokesOthers(Straight):
    """Changes a setting for a smoke run that it does not have."""

    def smoke_overrides(self) -> Any:
        return {"warmup_steps": 1}


class NoFactor(Schedule[ScheduleConfig]):
    """Has neither a factor nor rates."""

    method = "no_factor"
    Config = ScheduleConfig


HIGHEST = "test_its_rates_are_finite_and_the_peak_is_the_highest"
RESUMED = "test_a_resumed_training_has_the_same_rates"
CHECKS = "test_its_checks_are_of_its_own_settings"
SCHEDULES: list[tuple[type[Any], str]] = [
    (DividesByTheRest, HIGHEST),
    (BelowZero, HIGHEST),
    (NotANumber, HIGHEST),
    (GivesTheRate, HIGHEST),
    (OneRate, HIGHEST),
    (Nothing, "test_some_step_has_a_rate"),
    (NoWarmUp, "test_a_warm_up_rises"),
    (SaysSteady, "test_it_says_whether_the_rates_depend_on_the_number_of_steps"),
    (CountsItself, RESUMED),
    (ForgetsTheBest, RESUMED),
    (StateNoJson, RESUMED),
    (ListensUnasked, "test_it_asks_for_scores_where_they_change_its_rates"),
    (RefusesAll, CHECKS),
    (YieldsText, CHECKS),
    (SmokesOthers, CHECKS),
    (NoFactor, "test_the_class_declares_what_its_kind_must"),
]


@pytest.mark.parametrize(("schedule", "test"), SCHEDULES)
def test_the_kit_catches_a_wrong_schedule(schedule: Any, test: str, catches: Catches) -> None:
    catches(ScheduleContract, schedule, test, ArithmeticError)
