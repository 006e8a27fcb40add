"""The contract of a callback, as tests: it changes nothing of the training, and resumes exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from llmft import api
from llmft.api.errors import LlmftError, PluginError
from llmft.api.evaluate_settings import EvaluateSettings
from llmft.api.kinds import Kind
from llmft.registry.return_checks import (
    bytes_of_callback,
    callback_state_of,
    refusals_of,
    weights_of,
)
from llmft.testing.config_checks import SettingsContract
from llmft.training import loop
from llmft.training.checkpoints import Checkpoints
from llmft.training.metrics import LoopReport
from llmft.training.training_state import trainable
from llmft.training.validation import Validation

STEPS, WIDTH = 12, 8
USES = ("evaluation", "checkpoint", "result")


class CallbackContract(SettingsContract):
    """Checks a callback in trainings of 12 steps on two small matrices, scored at every second.

    Every update is what it would be without it, up to where it ends the training; a training that
    is resumed, by an object of its own, ends at the same step, with the same weights and state.
    """

    kind: ClassVar[Kind] = "callback"

    def test_it_changes_no_update(self, settings: Mapping[str, Any], tmp_path: Path) -> None:
        plain, watched = _Training(None, tmp_path / "a"), self._training(settings, tmp_path / "b")
        plain.run()
        self._run(watched)
        taken = len(watched.weights)
        assert taken, "it ends a training before its first step"
        for step, ours in enumerate(watched.weights, 1):
            same = torch.equal(ours, plain.weights[step - 1])
            assert same, f"the weights after step {step} are not what they were"
        assert watched.losses == plain.losses[:taken], "the losses are not what they were"

    def test_it_says_why_it_ends_a_training(
        self, settings: Mapping[str, Any], tmp_path: Path
    ) -> None:
        training = self._training(settings, tmp_path)
        report = self._run(training)
        if report.steps < STEPS:
            assert report.ended_by, "it ends the training, and does not say why"

    def test_a_resumed_training_is_the_same_to_the_bit(
        self, settings: Mapping[str, Any], tmp_path: Path
    ) -> None:
        whole = self._training(settings, tmp_path / "whole")
        wanted = self._run(whole)
        state = callback_state_of(whole.callback)
        for stop in (1, 6):
            folder = tmp_path / f"stopped-{stop}"
            if not _stopped(self._training(settings, folder), stop):
                continue  # it has ended before
            again = self._training(settings, folder)
            found = self._run(again, resume=True)
            says = f"after a resume at step {stop}"
            assert found.steps == wanted.steps, f"it ends at another step {says}"
            assert found.losses == wanted.losses, f"the losses are others {says}"
            for name, parameter in trainable(whole.model).items():
                same = torch.equal(parameter, trainable(again.model)[name])
                assert same, f"the resulting '{name}' is another {says}; does 'state' hold all?"
            assert _alike(callback_state_of(again.callback), state), f"its state is another {says}"

    def test_its_weights_fit_what_is_trained(
        self, settings: Mapping[str, Any], tmp_path: Path
    ) -> None:
        if not self.method_class.gives_weights:
            return
        training = self._training(settings, tmp_path)
        self._run(training)
        parameters = trainable(training.model)
        for use in USES:
            try:
                first = weights_of(training.callback, use, parameters)
                kept = {name: weight.clone() for name, weight in first.items()}
                again = weights_of(training.callback, use, parameters)
            except PluginError as error:
                pytest.fail(error.faults[0].what)
            assert _same(kept, again), f"the weights for '{use}' are others when asked again"
        result = weights_of(training.callback, "result", parameters)
        for name, weight in result.items():
            same = torch.equal(parameters[name], weight.to(parameters[name].dtype))
            assert same, f"the training's result has another '{name}' than 'weights' gives"

    def test_plan_can_count_its_state(self, settings: Mapping[str, Any], tmp_path: Path) -> None:
        training = self._training(settings, tmp_path)
        self._run(training)
        tensors, _ = callback_state_of(training.callback)
        holds = sum(tensor.nbytes for tensor in tensors.values())
        try:
            said = sum(bytes_of_callback(training.callback, p) for p in training.model.parameters())
        except PluginError as error:
            pytest.fail(error.faults[0].what)
        assert holds <= said, f"its state has {holds} bytes of tensors; 'state_bytes' says {said}"

    def test_its_checks_are_of_its_own_settings(self, settings: Mapping[str, Any]) -> None:
        made = self.make(settings)
        try:
            refused = refusals_of(made, api.TrainSettings())
            assert not refused, f"it refuses plain settings: {refused}"
        except PluginError as error:
            pytest.fail(error.faults[0].what)
        strange = set(made.smoke_overrides()) - set(type(made.config).model_fields)
        assert not strange, f"'smoke_overrides' names what is none of its settings: {strange}"

    def _training(self, settings: Mapping[str, Any], folder: Path) -> _Training:
        return _Training(self.make(settings), folder)

    def _run(self, training: _Training, *, resume: bool = False) -> LoopReport:
        try:
            return training.run(resume=resume)
        except LlmftError as error:
            pytest.fail(f"a plain training stops: {error.faults[0].what}")


class _Stop(Exception):
    """Takes the place of a kill."""


class _Training:
    """A training with a callback, which keeps the weights after each step, and checkpoints."""

    def __init__(self, callback: api.Callback[Any] | None, folder: Path) -> None:
        self.callback: Any = callback
        self.checkpoints = Checkpoints(folder / "checkpoints", "kit", {"rows": "made up"})
        self.model = _Product()
        self.weights: list[torch.Tensor] = []
        self.losses: list[float] = []
        self.stop_at = 0

    def run(self, *, resume: bool = False) -> LoopReport:
        settings = api.TrainSettings(
            max_steps=STEPS, learning_rate=1e-2, per_device_train_batch_size=2,
            save_strategy="steps", save_steps=1, logging_steps=1,
        )  # fmt: skip
        asked = EvaluateSettings(eval_strategy="steps", eval_steps=2)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return loop.train(
                self.model, list(range(6)), _Objective(), settings, seed=1, on_step=self._on_step,
                checkpoints=self.checkpoints, saved=self.checkpoints.newest() if resume else None,
                validation=Validation(asked, self._score),
                callbacks=[self.callback] if self.callback else [],
            )  # fmt: skip

    def _on_step(self, step: int, steps: int, metrics: Mapping[str, float], log: bool) -> None:
        if step == self.stop_at:
            raise _Stop
        self.weights.append(torch.cat([p.detach().flatten() for p in self.model.parameters()]))
        self.losses.append(metrics["loss"])

    def _score(self, step: int, *, generate: bool, stopping: Any) -> Mapping[str, float]:
        with torch.no_grad():
            return {"loss": float(self.model.loss(WIDTH))}


def _stopped(training: _Training, step: int) -> bool:
    """Run a training until it is killed in the step after this one; False where it ends before."""
    training.stop_at = step + 1
    try:
        training.run()
    except _Stop:
        return True
    return False


class _Product(torch.nn.Module):
    """Two matrices, one in bfloat16, whose product is to be another one; it draws noise."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def made() -> torch.Tensor:
            return 0.3 * torch.randn(WIDTH, WIDTH, generator=generator)

        self.first = torch.nn.Parameter(made())
        self.second = torch.nn.Parameter(made().to(torch.bfloat16))
        self.target = made() @ made()

    def loss(self, row: int) -> torch.Tensor:
        wrong = self.first @ self.second.float() - self.target
        return wrong.square().mean() * (1 + 0.01 * row)


class _Objective:
    """The loss of each row, with some noise in the gradient that the generators give."""

    def weight(self, batch: Sequence[Any]) -> float:
        return float(len(batch))

    def loss(self, model: Any, batch: Sequence[Any]) -> tuple[torch.Tensor, Mapping[str, Any]]:
        noise = 1 + 0.1 * torch.rand(())
        return sum(model.loss(row) for row in batch) * noise, {}


def _alike(ours: Any, theirs: Any) -> bool:
    return ours[1] == theirs[1] and _same(ours[0], theirs[0])


def _same(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
