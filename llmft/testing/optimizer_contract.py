"""The contract of an optimiser, as tests: it trains what it is given, and resumes to the bit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch

from llmft import api
from llmft.api.errors import LlmftError, PluginError
from llmft.api.kinds import Kind
from llmft.registry.return_checks import optimizer_of, refusals_of
from llmft.testing.config_checks import SettingsContract
from llmft.training import modes, training_state
from llmft.training.learning_rates import LearningRates


class OptimizerContract(SettingsContract):
    """Checks an optimiser on a small regression of two matrices, on the CPU.

    learning_rate, steps: with these the loss must fall to half. width: of the matrices, for an
    optimiser that treats large ones in another way.
    """

    kind: ClassVar[Kind] = "optimizer"
    learning_rate: ClassVar[float] = 1e-2
    steps: ClassVar[int] = 60
    width: ClassVar[int] = 16

    def test_it_trains_exactly_the_parameters_it_is_given(
        self, settings: Mapping[str, Any]
    ) -> None:
        model = _Task(self.width)
        model.first.requires_grad_(False)
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = self._optimizer(settings, model)
        _trained(model, optimizer, 3)
        moved = [not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
        assert moved == [False, True], f"of a frozen and a trained matrix it moves {moved}"

    def test_it_lowers_the_loss(self, settings: Mapping[str, Any]) -> None:
        model = _Task(self.width)
        optimizer = self._optimizer(settings, model)
        first = float(model.loss().detach())
        _trained(model, optimizer, self.steps)
        modes.to_use(optimizer)
        last = float(model.loss().detach())
        assert last < first / 2, (
            f"the loss goes from {first:.4f} to {last:.4f} in {self.steps} steps of"
            f" {self.learning_rate}; set the contract's learning_rate and steps"
        )

    def test_a_groups_own_rate_and_decay_are_its_own(self, settings: Mapping[str, Any]) -> None:
        model = _Task(self.width)
        groups: list[dict[str, Any]] = [
            {"params": [model.first]},
            {"params": [model.second], "lr": 3 * self.learning_rate, "weight_decay": 0.0},
        ]
        made = self._made(settings, groups, weight_decay=0.25)
        found = {id(p): group for group in made.param_groups for p in group["params"]}
        rates = [found[id(p)]["lr"] for p in (model.first, model.second)]
        wanted = [self.learning_rate, 3 * self.learning_rate]
        assert rates == wanted, f"the groups have the rates {rates}, not {wanted}"
        decay = found[id(model.second)].get("weight_decay", 0.0)
        assert decay == 0.0, f"a group without weight decay has {decay}"
        kept = [sorted(group) for group in groups]
        assert kept == [["params"], ["lr", "params", "weight_decay"]], "it changes the given groups"

    def test_it_follows_the_rate_of_its_groups(self, settings: Mapping[str, Any]) -> None:
        weights = []
        for factor in (1.0, 0.1):
            model = _Task(self.width)
            optimizer = self._optimizer(settings, model)
            for group in optimizer.param_groups:  # as the schedule sets it
                group["lr"] = self.learning_rate * factor
            _trained(model, optimizer, 2)
            weights.append(model.first.detach())
        same = torch.equal(*weights)
        assert not same, "a tenth of the learning rate takes the same steps: is group['lr'] read?"

    def test_it_does_the_same_twice(self, settings: Mapping[str, Any]) -> None:
        weights = []
        for _ in range(2):
            model = _Task(self.width)
            _trained(model, self._optimizer(settings, model), 5)
            weights.append(model.first.detach())
        assert torch.equal(*weights), "two trainings of the same numbers end apart"

    def test_a_resumed_training_is_the_same_to_the_bit(self, settings: Mapping[str, Any]) -> None:
        whole = _Task(self.width)
        optimizer = self._optimizer(settings, whole)
        modes.to_training(optimizer)
        _trained(whole, optimizer, 4)
        method = self.make(settings)
        try:
            tensors, facts = training_state.capture(whole, optimizer, method)
        except LlmftError as error:
            pytest.fail(error.faults[0].what)
        kept = {name: tensor.clone() for name, tensor in tensors.items()}
        facts = json.loads(json.dumps(facts))  # as a checkpoint holds them
        _trained(whole, optimizer, 4)

        resumed = _Task(self.width)
        again = self._optimizer(settings, resumed)
        modes.to_training(again)
        steady = LearningRates(again, _Steady(), api.TrainingSpan(8, 0, self.learning_rate))
        training_state.restore(resumed, again, steady, 4, kept, facts, method)
        _trained(resumed, again, 4)
        for name, wanted in whole.named_parameters():
            same = torch.equal(dict(resumed.named_parameters())[name], wanted)
            says = "is everything in the optimiser's 'state', or named in 'group_state'?"
            assert same, f"'{name}' is another after a resume; {says}"

    def test_it_names_what_changes_in_its_groups(self, settings: Mapping[str, Any]) -> None:
        model = _Task(self.width)
        optimizer = self._optimizer(settings, model)
        modes.to_training(optimizer)
        before = [_plain(group) for group in optimizer.param_groups]
        _trained(model, optimizer, 3)
        after = [_plain(group) for group in optimizer.param_groups]
        changed = {
            key
            for one, other in zip(before, after, strict=True)
            for key in {**one, **other}
            if one.get(key) != other.get(key)
        }
        missing = sorted(changed - {*self.method_class.group_state, "lr"})
        assert not missing, f"these change in its groups, and are not in 'group_state': {missing}"

    def test_plan_can_count_its_state(self, settings: Mapping[str, Any]) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        method = self.make(settings).planned()
        if (size := method.state_bytes(_Task(self.width).first)) is not None:
            assert isinstance(size, int), f"'state_bytes' returns {size!r}, not a whole number"
            assert size >= 0, f"'state_bytes' returns {size}"
            return
        with FakeTensorMode():
            model = _Task(self.width)
            made = optimizer_of(method, [{"params": list(model.parameters())}], self._train())
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            modes.to_training(made)
            try:
                made.step()
            except Exception as error:
                pytest.fail(
                    f"it cannot run on fake tensors, so that 'state_bytes' is wanted: {error}"
                )

    def test_its_checks_are_of_its_own_settings(self, settings: Mapping[str, Any]) -> None:
        try:
            refused = refusals_of(self.make(settings), self._train())
        except PluginError as error:
            pytest.fail(error.faults[0].what)
        assert not refused, f"it refuses plain settings: {refused}"

    def _train(self, weight_decay: float = 0.0) -> api.TrainSettings:
        return api.TrainSettings(
            learning_rate=self.learning_rate, lr_scheduler_type="constant",
            weight_decay=weight_decay,
        )  # fmt: skip

    def _made(
        self, settings: Mapping[str, Any], groups: Any, weight_decay: float = 0.0
    ) -> torch.optim.Optimizer:
        try:
            made: torch.optim.Optimizer = optimizer_of(
                self.make(settings), groups, self._train(weight_decay)
            )
        except PluginError as error:
            pytest.fail(error.faults[0].what)
        return made

    def _optimizer(self, settings: Mapping[str, Any], model: _Task) -> torch.optim.Optimizer:
        trained = [p for p in model.parameters() if p.requires_grad]
        made = self._made(settings, [{"params": trained}])
        modes.to_training(made)
        return made


class _Steady(api.Schedule[api.ScheduleConfig]):
    """The peak in every step."""

    method = "steady"
    Config = api.ScheduleConfig

    def __init__(self) -> None:
        super().__init__(api.ScheduleConfig(method="steady"))

    def factor(self, step: int, span: api.TrainingSpan) -> float:
        return 1.0


class _Task(torch.nn.Module):
    """Two matrices whose product is to be another one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def made(scale: float) -> torch.Tensor:
            factor = scale * math.sqrt(16 / width)
            return factor * torch.randn(width, width, generator=generator)

        self.first = torch.nn.Parameter(made(0.3))
        self.second = torch.nn.Parameter(made(0.3))
        self.target = made(0.3) @ made(0.3)

    def loss(self) -> torch.Tensor:
        return (self.first @ self.second - self.target).square().mean()


def _trained(model: _Task, optimizer: torch.optim.Optimizer, steps: int) -> None:
    modes.to_training(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(model.loss())
        optimizer.step()


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}
