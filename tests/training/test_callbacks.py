"""Callbacks in the training loop: what they see, what their weights are used for, how they end it.

The average of `llmft_callbacks.ema` serves as an example of weights; the rest is made up here.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import pytest
import torch
from llmft_callbacks.ema import Ema

from llmft.api import Callback, CallbackConfig
from llmft.api.errors import CheckpointError, Interrupted, PluginError
from llmft.api.evaluate_settings import EvaluateSettings
from llmft.api.train_settings import TrainSettings
from llmft.modeling.tiny_models import tiny_llama
from llmft.training import loop, training_state
from llmft.training.validation import Validation
from tests.training.test_loop import CompletionLoss, items, stored

SETTINGS = TrainSettings(
    max_steps=6, per_device_train_batch_size=4, learning_rate=0.01, lr_scheduler_type="constant",
    save_strategy="steps", save_steps=1, save_total_limit=9,
)  # fmt: skip


def flat(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class Sees(Callback[CallbackConfig]):
    """Keeps what it is told, and ends after so many steps."""

    method, Config = "sees", CallbackConfig

    def __init__(self, last=99):
        super().__init__(CallbackConfig(method="sees"))
        self.last, self.begun, self.steps, self.scores = last, None, [], []

    def on_train_begin(self, training):
        assert training.metrics == {}
        self.begun = (training.step, training.steps, sorted(training.parameters))

    def on_step_end(self, training):
        torch.manual_seed(training.step)  # put back by llmft
        weights = torch.cat([p.flatten() for p in training.parameters.values()])
        self.steps.append((training.step, dict(training.metrics), weights.clone()))

    def on_evaluate(self, training, scores):
        self.scores.append((training.step, dict(scores)))

    def should_continue(self):
        return len(self.steps) < self.last

    def stop_reason(self):
        return f"{len(self.steps)} are enough"

    def state(self):
        return {"steps": [step for step, *_ in self.steps]}

    def restore(self, state):
        self.steps = [(step, {}, None) for step in state["steps"]]


def ema(decay=0.5) -> Ema:
    return Ema(Ema.Config(method="ema", decay=decay))


def trained(folder, callbacks=(), *, saved=None, kill_at=0, **evaluate):
    """Train a tiny model; return it, the report, and the weights that each evaluation found."""
    model, seen = tiny_llama(), []
    losses = [6.0, 2.0, 1.0, 4.0, 5.0, 3.0]  # of the evaluations, whatever the model is

    def score(step, **_):
        seen.append(flat(model))
        return {"loss": losses[step - 1]}

    def on_step(step, steps, metrics, log):
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGTERM)

    asked = EvaluateSettings(eval_strategy="steps", eval_steps=1, **evaluate)
    report = None
    with suppress(Interrupted):
        report = loop.train(
            model, items(), CompletionLoss(), SETTINGS, seed=3, on_step=on_step,
            checkpoints=stored(folder), saved=saved, validation=Validation(asked, score),
            callbacks=callbacks,
        )  # fmt: skip
    return model, report, seen


def test_it_sees_each_step_and_each_evaluation_and_changes_nothing(tmp_path):
    callback = Sees()
    model, report, seen = trained(tmp_path / "a", [callback])
    plain, _, _ = trained(tmp_path / "b")
    assert torch.equal(flat(model), flat(plain))
    names = sorted(name for name, _ in model.named_parameters())
    assert callback.begun == (0, 6, names)
    assert [step for step, *_ in callback.steps] == [1, 2, 3, 4, 5, 6]
    assert [metrics["loss"] for _, metrics, _ in callback.steps] == report.losses
    assert all({"grad_norm", "learning_rate", "epoch"} < set(m) for _, m, _ in callback.steps)
    assert callback.scores == [(n, {"loss": v}) for n, v in enumerate([6, 2, 1, 4, 5, 3], 1)]
    assert torch.equal(callback.steps[-1][2], seen[-1])


class Takes(Sees):
    """Takes from what it is shown."""

    def __init__(self, what):
        super().__init__()
        self.what = what

    def on_step_end(self, training):
        getattr(training, self.what).clear()


@pytest.mark.parametrize("what", ["parameters", "metrics"])
def test_one_cannot_take_from_what_the_next_sees(tmp_path, what):
    with pytest.raises(AttributeError, match="'mappingproxy' object has no attribute 'clear'"):
        trained(tmp_path, [Takes(what), ema()])


def test_it_ends_the_training_as_its_last_step_would(tmp_path):
    model, report, seen = trained(tmp_path, [Sees(), Sees(last=4)])
    assert (report.steps, report.ended_by) == (4, "4 are enough")
    assert torch.equal(flat(model), seen[-1])
    assert stored(tmp_path).newest().step == 4
    assert not model.training


class TwoLines(Sees):
    def stop_reason(self):
        return "enough\nerror[E900] not ours\u2028nor this"


def test_why_it_ends_is_told_in_one_line(tmp_path):
    _, report, _ = trained(tmp_path, [TwoLines(last=2)])
    assert report.ended_by == "enough error[E900] not ours nor this"


def test_its_end_is_saved_though_no_checkpoint_is_due(tmp_path):
    settings = SETTINGS.model_copy(update={"save_strategy": "epoch"})
    for strategy, there in (("epoch", [2]), ("no", [])):
        one = settings.model_copy(update={"save_strategy": strategy})
        loop.train(tiny_llama(), items(), CompletionLoss(), one, seed=3,
                   checkpoints=stored(tmp_path / strategy), callbacks=[Sees(last=2)])  # fmt: skip
        assert stored(tmp_path / strategy).steps() == there


def test_a_training_that_a_callback_ended_is_not_trained_on(tmp_path):
    trained(tmp_path, [Sees(last=4)])
    _, report, seen = trained(tmp_path, [Sees(last=4)], saved=stored(tmp_path).newest())
    assert (report.steps, report.ended_by, seen) == (4, "4 are enough", [])


def test_evaluation_checkpoint_and_result_are_of_the_given_weights(tmp_path):
    watcher = Sees()
    model, _, seen = trained(tmp_path, [ema(), watcher])
    path = torch.stack([weights for *_, weights in watcher.steps])
    average, total = torch.zeros_like(path[0]), 0.0
    for step, weights in enumerate(path):  # Kingma and Ba 2015, section 7.2
        average, total = 0.5 * average + 0.5 * weights, 0.5 * total + 0.5
        torch.testing.assert_close(seen[step], average / total, rtol=1e-5, atol=1e-7)
    assert torch.equal(flat(model), seen[-1])
    saved = stored(tmp_path).newest()
    for name, parameter in model.named_parameters():
        assert torch.equal(saved.tensors[f"model/{name}"], parameter)
        assert not torch.equal(saved.tensors[f"trained/{name}"], parameter)


def test_the_training_goes_on_with_its_own_weights(tmp_path):
    alone, beside = Sees(), Sees()
    trained(tmp_path / "a", [alone])
    trained(tmp_path / "b", [ema(), beside])
    for (*_, ours), (*_, theirs) in zip(beside.steps, alone.steps, strict=True):
        assert torch.equal(ours, theirs)


def test_the_best_checkpoint_is_one_of_the_given_weights(tmp_path):
    model, _, seen = trained(tmp_path, [ema()], load_best_model_at_end=True)
    assert torch.equal(flat(model), seen[2]), "the third evaluation, with a loss of 1, is the best"


@pytest.mark.parametrize("kill_at", [1, 3, 6])
def test_it_goes_on_to_the_bit(tmp_path, kill_at):
    whole, _, seen = trained(tmp_path / "whole", [Sees(), ema()])
    trained(tmp_path / "cut", [Sees(), ema()], kill_at=kill_at)
    saved = stored(tmp_path / "cut").newest()
    assert saved.step == kill_at
    counted = Sees()
    again, _, later = trained(tmp_path / "cut", [counted, ema()], saved=saved)
    assert torch.equal(flat(again), flat(whole))
    assert [step for step, *_ in counted.steps] == [1, 2, 3, 4, 5, 6]
    # A signal came before the step was scored: that is made up for.
    assert len(later) == 7 - kill_at
    assert all(torch.equal(a, b) for a, b in zip(later, seen[kill_at - 1 :], strict=True))


def test_a_checkpoint_of_other_callbacks_is_refused(tmp_path):
    trained(tmp_path, [Sees()], kill_at=2)
    with pytest.raises(CheckpointError, match=r"E404.*had the plugins \[sees\], and now has \[\]"):
        trained(tmp_path, saved=stored(tmp_path).newest())


def test_a_disk_must_hold_what_they_add_to_a_checkpoint(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(loop, "check_space", lambda folder, size, count: asked.append(size))
    trained(tmp_path / "a")
    trained(tmp_path / "b", [ema()])
    weights = 4 * sum(p.numel() for p in tiny_llama().parameters())
    assert asked == [3 * weights, 5 * weights], "the average, and the weights that are trained"


class NoMapping(Sees):
    gives_weights = True

    def weights(self, use):
        return [1]


class NoState(Sees):
    def state(self):
        return {"model": self}


class NoTruth(Sees):
    def should_continue(self):
        return "yes"


class Deep(Sees):
    def state(self):
        deep: list = []
        for _ in range(5000):
            deep = [deep]
        return {"deep": deep}


class NoReason(Sees):
    def stop_reason(self):
        return None


@pytest.mark.parametrize(("callback", "said"), [
    (NoMapping(), "'weights' returns a 'list', not a mapping of tensors"),
    (NoState(), "'state' is neither tensors nor plain data"),
    (NoTruth(), "'should_continue' returns 'yes', not True or False"),
    (Deep(), "'state' is neither tensors nor plain data: maximum recursion depth"),
    (NoReason(last=1), "'stop_reason' returns None, not a reason in words"),
])  # fmt: skip
def test_what_breaks_the_contract_is_named(tmp_path, callback, said):
    with pytest.raises(PluginError, match="the callback 'sees' breaks the contract") as caught:
        trained(tmp_path, [callback])
    assert said in str(caught.value)


def test_weights_are_put_in_their_own_type():
    model = tiny_llama().to(torch.bfloat16)
    parameters = training_state.trainable(model)
    name = next(iter(parameters))
    given = {name: torch.full_like(parameters[name], 0.1, dtype=torch.float32)}
    before = flat(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1)
    with loop.modes.in_use(optimizer, parameters, given):
        assert parameters[name].dtype is torch.bfloat16
        assert torch.equal(parameters[name], given[name].bfloat16())
    assert torch.equal(flat(model), before)
