"""The contract of a learning-rate schedule, as tests: rates that a resumed training has too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from llmft import api
from llmft.api.errors import PluginError
from llmft.api.kinds import Kind
from llmft.registry.return_checks import rates_of, refusals_of, state_of
from llmft.testing.config_checks import SettingsContract

PEAK = 1e-2
BASES = ([PEAK], [PEAK, 4 * PEAK])
"""The peaks of an optimiser's groups: one group, and two such as LoRA+ has."""
SCORES = (2.0, 1.5, 1.5, 1.6, 1.7, 1.8, 0.5, 0.5, 0.5, 0.6)


class ScheduleContract(SettingsContract):
    """Checks the rates that a schedule gives, in trainings of a few steps and of many.

    They are finite and not below 0, the peak is the highest, a warm-up rises to it, and a training
    that is resumed at any step, by an object of its own, has the rates of one that was not.
    """

    kind: ClassVar[Kind] = "schedule"

    def test_its_rates_are_finite_and_the_peak_is_the_highest(
        self, settings: Mapping[str, Any]
    ) -> None:
        for span in self._spans(settings):
            for base in BASES:
                for step, rates in enumerate(self._curve(self.make(settings), span, base)):
                    for rate, peak in zip(rates, base, strict=True):
                        above = f"step {step} of {span.steps} has the rate {rate}, above the peak"
                        assert rate <= peak * (1 + 1e-9), f"{above} {peak}"

    def test_some_step_has_a_rate(self, settings: Mapping[str, Any]) -> None:
        for span in self._spans(settings):
            rates = self._curve(self.make(settings), span, BASES[0])[: span.steps]
            assert any(rate > 0 for (rate,) in rates), f"all of {span.steps} steps have the rate 0"

    def test_a_warm_up_rises(self, settings: Mapping[str, Any]) -> None:
        if not self.method_class.supports_warmup:
            return
        for span in self._spans(settings):
            rates = [rate for (rate,) in self._curve(self.make(settings), span, BASES[0])]
            rising = rates[: span.warmup_steps]
            says = f"the warm-up of {span.warmup_steps} steps has the rates {rising}"
            assert rising == sorted(rising), f"{says}, which do not rise"
            if span.warmup_steps:
                assert rising[0] < rising[-1], f"{says}; does it look at warmup_steps?"

    def test_it_says_whether_the_rates_depend_on_the_number_of_steps(
        self, settings: Mapping[str, Any]
    ) -> None:
        if self.method_class.depends_on_steps:
            return
        warmup = 3 if self.method_class.supports_warmup else 0
        short, long = (
            self._curve(self.make(settings), api.TrainingSpan(steps, warmup, PEAK), BASES[0])
            for steps in (20, 50)
        )
        assert short == long[: len(short)], "more steps change the rates; see depends_on_steps"

    def test_a_resumed_training_has_the_same_rates(self, settings: Mapping[str, Any]) -> None:
        span = max(self._spans(settings), key=lambda span: span.steps)
        for greater in (False, True):
            self._resumes(settings, api.TrainingSpan(*_parts(span), greater))

    def test_it_asks_for_scores_where_they_change_its_rates(
        self, settings: Mapping[str, Any]
    ) -> None:
        if self.method_class.follows_scores:
            return
        schedule = self.make(settings)
        span = next(iter(self._spans(settings)))
        before = self._rates(schedule, 0, BASES[0], span)
        state = state_of(schedule)
        for value in SCORES:
            schedule.scored(value, span)
        after = self._rates(schedule, 0, BASES[0], span)
        says = "although follows_scores is False, and it is told none in a run"
        assert (before, state) == (after, state_of(schedule)), f"scores change it, {says}"

    def test_its_checks_are_of_its_own_settings(self, settings: Mapping[str, Any]) -> None:
        made = self.make(settings)
        try:
            refused = refusals_of(made, api.TrainSettings(learning_rate=PEAK))
            assert not refused, f"it refuses plain settings: {refused}"
        except PluginError as error:
            pytest.fail(error.faults[0].what)
        fields = set(type(made.config).model_fields)
        strange = set(made.smoke_overrides()) - fields
        assert not strange, f"'smoke_overrides' names what is none of its settings: {strange}"

    def _spans(self, settings: Mapping[str, Any]) -> list[api.TrainingSpan]:
        last = self.make(settings).last_steps()
        warmups = (0, 3) if self.method_class.supports_warmup else (0,)
        return [
            api.TrainingSpan(steps + last, warmup, PEAK)
            for steps in (4, 17, 250)
            for warmup in warmups
        ]

    def _rates(
        self, schedule: Any, step: int, base: list[float], span: api.TrainingSpan
    ) -> list[float]:
        try:
            return rates_of(schedule, step, base, span)
        except PluginError as error:
            pytest.fail(error.faults[0].what)

    def _curve(self, schedule: Any, span: api.TrainingSpan, base: list[float]) -> list[list[float]]:
        return [self._rates(schedule, step, base, span) for step in range(span.steps + 1)]

    def _resumes(self, settings: Mapping[str, Any], span: api.TrainingSpan) -> None:
        base, whole = BASES[1], self.make(settings)
        curve, states = [], []
        for step in range(span.steps + 1):
            curve.append(self._rates(whole, step, base, span))
            if step:
                whole.scored(SCORES[step % len(SCORES)], span)
            states.append(json.dumps(self._state(whole)))
        for stop in (1, 5, span.steps // 2):
            again = self.make(settings)
            self._rates(again, 0, base, span)
            if (state := json.loads(states[stop])) != {}:
                again.restore(state, span)
            for step in range(stop + 1, span.steps + 1):
                found = self._rates(again, step, base, span)
                wanted = f"step {step} has {found} after a resume at {stop}, not {curve[step]}"
                assert found == curve[step], f"{wanted}; does 'state' hold all?"
                again.scored(SCORES[step % len(SCORES)], span)

    def _state(self, schedule: Any) -> dict[str, Any]:
        try:
            return state_of(schedule)
        except PluginError as error:
            pytest.fail(error.faults[0].what)


def _parts(span: api.TrainingSpan) -> tuple[int, int, float]:
    return span.steps, span.warmup_steps, span.learning_rate
