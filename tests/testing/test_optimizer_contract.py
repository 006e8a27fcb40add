"""The contract kit fails on optimisers that break the contract, and on these only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from llmft.api import Optimizer, OptimizerConfig
from llmft.testing import OptimizerContract

Catches = Callable[..., None]


class Plain(torch.optim.Optimizer):
    """Momentum, and a count of steps in the groups."""

    def __init__(self, groups: Any, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "k": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    held = state.setdefault("momentum", torch.zeros_like(p))
                    held.mul_(1 - 1 / (group["k"] + 1)).add_(p.grad)
                    p.sub_(group["lr"] * (held + group["weight_decay"] * p))


class Momentum(Optimizer[OptimizerConfig]):
    """Steps along a momentum that gets longer with the steps."""

    method = "momentum"
    Config = OptimizerConfig
    group_state = ("k",)
    of_class: Any = Plain

    def make(self, groups: Any, train: Any) -> Any:
        copied = [dict(group) for group in groups]
        return self.of_class(copied, lr=train.learning_rate, weight_decay=train.weight_decay)


class ScheduleFree(torch.optim.Optimizer):
    """Defazio et al. 2024, eq. 3-5, for SGD: y is trained, x is used, z is in the state."""

    beta = 0.9

    def __init__(self, groups: Any, lr: float, weight_decay: float = 0.0) -> None:
        given = {"lr": lr, "weight_decay": weight_decay, "k": 0, "training": False}
        super().__init__(groups, given)

    @torch.no_grad()
    def _switch(self, weight: float, training: bool) -> None:
        for group in self.param_groups:
            if group["training"] != training:
                for p in group["params"]:
                    if "z" in self.state[p]:
                        p.lerp_(self.state[p]["z"], weight)
                group["training"] = training

    def train(self) -> None:
        self._switch(1 - self.beta, True)

    def eval(self) -> None:
        self._switch(1 - 1 / self.beta, False)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["k"] += 1
            c = 1 / group["k"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                z = self.state[p].setdefault("z", p.detach().clone())
                p.lerp_(z, c)
                p.add_(p.grad, alpha=group["lr"] * (self.beta * (1 - c) - 1))
                z.sub_(group["lr"] * p.grad)


class Free(Momentum):
    """Schedule-free descent."""

    method = "free"
    group_state = ("k", "training")
    of_class = ScheduleFree


class TestMomentum(OptimizerContract):
    method_class = Momentum
    learning_rate = 0.5


class TestFree(OptimizerContract):
    method_class = Free
    learning_rate = 3.0
    steps = 150


class NoOptimizer(Momentum):
    """Returns its settings."""

    def make(self, groups: Any, train: Any) -> Any:
        return {"lr": train.learning_rate}


class LeavesOneOut(Momentum):
    """Trains the last tensor of each group only."""

    def make(self, groups: Any, train: Any) -> Any:
        return super().make([{**g, "params": g["params"][-1:]} for g in groups], train)


class OneGroup(Momentum):
    """Puts all tensors into one group."""

    def make(self, groups: Any, train: Any) -> Any:
        return super().make([{"params": [p for g in groups for p in g["params"]]}], train)


class ChangesGroups(Momentum):
    """Writes into the groups that it is given."""

    def make(self, groups: Any, train: Any) -> Any:
        return self.of_class(groups, lr=train.learning_rate, weight_decay=train.weight_decay)


class Uphill(Momentum):
    """Goes up the gradient."""

    class Up(Plain):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad.neg_()
            super().step()

    of_class = Up


class OwnRate(Momentum):
    """Keeps the rate that it was made with."""

    class Own(Plain):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            now = [group["lr"] for group in self.param_groups]
            for group in self.param_groups:
                group["lr"] = self.defaults["lr"]
            super().step()
            for group, lr in zip(self.param_groups, now, strict=True):
                group["lr"] = lr

    of_class = Own


class ForgetsTheCount(Momentum):
    """Does not say that its groups count the steps."""

    group_state = ()


class StateElsewhere(Momentum):
    """Keeps its momentum in a dictionary of its own."""

    class Elsewhere(Plain):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.held: dict[Any, torch.Tensor] = {}

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        held = self.held.setdefault(p, torch.zeros_like(p))
                        held.mul_(0.9).add_(p.grad)
                        p.sub_(group["lr"] * held)

    of_class = Elsewhere


class StateNoData(Momentum):
    """Keeps an object in its state."""

    class Objects(Plain):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step()
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p]["mark"] = object()

    of_class = Objects


class ByChance(Momentum):
    """Steps with noise that no seed has."""

    class Noisy(Plain):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step()
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(torch.randn_like(p), alpha=1e-4)

    of_class = Noisy


class LooksAtNumbers(Momentum):
    """Reads a number of each gradient, which no fake tensor has."""

    class Looks(Plain):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None and float(p.grad.norm()) < 0:
                        raise ValueError
            super().step()

    of_class = Looks


class SizeInWords(Momentum):
    """Says its size as a text."""

    def state_bytes(self, parameter: Any) -> Any:
        return "1 MB"


class Picky(Momentum):
    """Refuses plain settings."""

    def check(self, train: Any) -> Any:
        yield ("optim",), "not today", "come again"


GIVEN = "test_it_trains_exactly_the_parameters_it_is_given"
OWN = "test_a_groups_own_rate_and_decay_are_its_own"
RESUMED = "test_a_resumed_training_is_the_same_to_the_bit"
PLANNED = "test_plan_can_count_its_state"
OPTIMIZERS: list[tuple[type[Any], str]] = [
    (NoOptimizer, GIVEN),
    (LeavesOneOut, RESUMED),
    (OneGroup, OWN),
    (ChangesGroups, OWN),
    (Uphill, "test_it_lowers_the_loss"),
    (OwnRate, "test_it_follows_the_rate_of_its_groups"),
    (ForgetsTheCount, "test_it_names_what_changes_in_its_groups"),
    (ForgetsTheCount, RESUMED),
    (StateElsewhere, RESUMED),
    (StateNoData, RESUMED),
    (ByChance, "test_it_does_the_same_twice"),
    (LooksAtNumbers, PLANNED),
    (SizeInWords, PLANNED),
    (Picky, "test_its_checks_are_of_its_own_settings"),
]


@pytest.mark.parametrize(("optimizer", "test"), OPTIMIZERS)
def test_the_kit_catches_a_wrong_optimizer(optimizer: Any, test: str, catches: Catches) -> None:
    catches(OptimizerContract, optimizer, test)
