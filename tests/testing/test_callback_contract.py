"""The contract kit fails on callbacks that break the contract, and on these only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from llmft.api import Callback, CallbackConfig, StageError
from llmft.testing import CallbackContract

Catches = Callable[..., None]


class Counts(Callback[CallbackConfig]):
    """Counts steps, and draws random numbers that nobody sees."""

    method = "counts"
    Config = CallbackConfig
    seen = 0

    def on_step_end(self, training: Any) -> None:
        torch.rand(3)
        self.seen += 1

    def state(self) -> Any:
        return {"seen": self.seen}

    def restore(self, state: Any) -> None:
        self.seen = state["seen"]


class Mean(Counts):
    """Gives the mean of the weights of all steps, as the result only."""

    gives_weights = True
    sums: Any = None

    def on_train_begin(self, training: Any) -> None:
        self.sums = {n: torch.zeros_like(p).float() for n, p in training.parameters.items()}

    def on_step_end(self, training: Any) -> None:
        super().on_step_end(training)
        for name, parameter in training.parameters.items():
            self.sums[name] += parameter

    def weights(self, use: str) -> Any:
        return {n: s / self.seen for n, s in self.sums.items()} if use == "result" else {}

    def state_bytes(self, parameter: torch.Tensor) -> int:
        return 4 * parameter.numel()

    def state(self) -> Any:
        return {"seen": self.seen, **self.sums}

    def restore(self, state: Any) -> None:
        self.seen = state["seen"]
        self.sums = {name: state[name].clone() for name in self.sums}


class Ends(Counts):
    """Ends after 7 steps."""

    def should_continue(self) -> bool:
        return self.seen < 7


class TestCounts(CallbackContract):
    method_class = Counts


class TestMean(CallbackContract):
    method_class = Mean


class TestEnds(CallbackContract):
    method_class = Ends


class ChangesWeights(Counts):
    """Halves a weight."""

    def on_step_end(self, training: Any) -> None:
        training.parameters["first"].mul_(0.5)


class ChangesGradients(Counts):
    """Leaves a gradient for the next step."""

    def on_step_end(self, training: Any) -> None:
        first = training.parameters["first"]
        first.grad = torch.ones_like(first)


class Stops(Counts):
    """Stops a training that is fine."""

    def on_step_end(self, training: Any) -> None:
        raise StageError("E308", "no")


class EndsAtOnce(Counts):
    """Lets no step be taken."""

    def should_continue(self) -> bool:
        return False


class SaysNothing(Ends):
    """Gives no reason."""

    def stop_reason(self) -> str:
        return ""


class SaysMaybe(Counts):
    """Gives a number for a truth value."""

    def should_continue(self) -> Any:
        return 1


class Forgets(Ends):
    """Keeps nothing."""

    def state(self) -> Any:
        return {}

    def restore(self, state: Any) -> None:
        pass


class KeepsTuples(Counts):
    """Keeps what JSON gives back as a list."""

    def state(self) -> Any:
        return {"seen": (self.seen, 1)}


class ForgetsSums(Mean):
    """Keeps the count alone."""

    def state(self) -> Any:
        return {"seen": self.seen}

    def restore(self, state: Any) -> None:
        self.seen = state["seen"]


class GivesOthers(Mean):
    """Gives a weight that is not there."""

    def weights(self, use: str) -> Any:
        return {"third": torch.zeros(1)}


class GivesFlat(Mean):
    """Gives weights of another shape."""

    def weights(self, use: str) -> Any:
        return {n: s.flatten() for n, s in super().weights(use).items()}


class GivesNaN(Mean):
    """Gives weights that are no numbers."""

    def weights(self, use: str) -> Any:
        return {n: s * torch.nan for n, s in super().weights(use).items()}


class MovesOn(Mean):
    """Gives other weights each time."""

    def weights(self, use: str) -> Any:
        self.seen += 1
        return super().weights(use)


class SaysSmall(Mean):
    """Says that it holds nothing."""

    def state_bytes(self, parameter: torch.Tensor) -> int:
        return 0


class SaysHalf(Mean):
    """Says half a byte."""

    def state_bytes(self, parameter: torch.Tensor) -> Any:
        return 4.5 * parameter.numel()


class RefusesAll(Counts):
    """Refuses every recipe."""

    def check(self, train: Any) -> Any:
        return [(("method",), "no", "no")]


class SmokesOthers(Counts):
    """Asks for a setting that it does not have."""

    def smoke_overrides(self) -> Any:
        return {"patience": 1}


class SaysItGives(Counts):
    """Says that it gives weights, and has none."""

    gives_weights = True


class GivesUnsaid(Mean):
    """Gives weights, and does not say so."""

    gives_weights = False


SAME = "test_it_changes_no_update"
RESUMED = "test_a_resumed_training_is_the_same_to_the_bit"
FITS = "test_its_weights_fit_what_is_trained"
CHECKS = "test_its_checks_are_of_its_own_settings"
DECLARES = "test_the_class_declares_what_its_kind_must"
WRONG: list[tuple[type[Any], str]] = [
    (ChangesWeights, SAME),
    (ChangesGradients, SAME),
    (Stops, SAME),
    (EndsAtOnce, SAME),
    (SaysNothing, "test_it_says_why_it_ends_a_training"),
    (SaysMaybe, SAME),
    (Forgets, RESUMED),
    (KeepsTuples, RESUMED),
    (ForgetsSums, RESUMED),
    (GivesOthers, FITS),
    (GivesFlat, FITS),
    (GivesNaN, FITS),
    (MovesOn, FITS),
    (SaysSmall, "test_plan_can_count_its_state"),
    (SaysHalf, "test_plan_can_count_its_state"),
    (RefusesAll, CHECKS),
    (SmokesOthers, CHECKS),
    (SaysItGives, DECLARES),
    (GivesUnsaid, DECLARES),
]


@pytest.mark.parametrize(("callback", "test"), WRONG)
def test_the_kit_catches_a_wrong_callback(callback: Any, test: str, catches: Catches) -> None:
    catches(CallbackContract, callback, test)
