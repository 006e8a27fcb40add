"""An optimiser that trains other weights than those to be used: scored, saved and resumed."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import pytest
import torch

from llmft.api import OptimizerConfig
from llmft.api.errors import Interrupted, PluginError, StageError
from llmft.api.evaluate_settings import EvaluateSettings
from llmft.api.train_settings import TrainSettings
from llmft.modeling.tiny_models import tiny_llama
from llmft.training import loop
from llmft.training.validation import Validation
from tests.testing.test_optimizer_contract import Free, LeavesOneOut, NoOptimizer, Plain
from tests.training.test_loop import CompletionLoss, items, stored

SETTINGS = TrainSettings(
    max_steps=6, per_device_train_batch_size=4, learning_rate=0.3, lr_scheduler_type="constant",
    save_strategy="steps", save_steps=1, save_total_limit=9,
)  # fmt: skip


def free() -> Free:
    return Free(OptimizerConfig(method="free"))


def trained(folder, *, saved=None, stop_after=0, scored=True):
    """Train a tiny model; return it, and the weights that each evaluation found."""
    model, seen = tiny_llama(), []

    def score(step, **_):
        seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        return {"loss": 9.0 - step}

    def on_step(step, steps, metrics, log):
        if step == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    asked = EvaluateSettings(eval_strategy="steps", eval_steps=1)
    with suppress(Interrupted):
        loop.train(
            model, items(), CompletionLoss(), SETTINGS, seed=3, on_step=on_step,
            checkpoints=stored(folder), saved=saved, optimizer=free(),
            validation=Validation(asked, score) if scored else None,
        )  # fmt: skip
    return model, seen


def same(one, other) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


def test_scores_and_checkpoints_are_of_the_weights_to_be_used(tmp_path):
    model, seen = trained(tmp_path)
    final = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(seen[-1], final), "the last evaluation is of what is the result"
    saved = stored(tmp_path).newest()
    for name, parameter in model.named_parameters():
        assert torch.equal(saved.tensors[f"model/{name}"], parameter)
        assert not torch.equal(saved.tensors[f"trained/{name}"], parameter)
    assert saved.facts["optimizer_groups"] == [{"k": 6, "training": True}]


def test_scoring_and_saving_change_no_bit_of_the_training(tmp_path):
    assert same(trained(tmp_path / "a")[0], trained(tmp_path / "b", scored=False)[0])


def test_it_goes_on_to_the_bit(tmp_path):
    whole, _ = trained(tmp_path / "whole")
    trained(tmp_path / "cut", stop_after=3)
    saved = stored(tmp_path / "cut").newest()
    assert saved.step == 3
    assert same(whole, trained(tmp_path / "cut", saved=saved)[0])


@pytest.mark.parametrize(("cls", "said"), [
    (NoOptimizer, "'make' returns a 'dict', not a torch.optim.Optimizer"),
    (LeavesOneOut, "'make' returns an optimiser of 1 of"),
])  # fmt: skip
def test_what_breaks_the_contract_is_named(cls, said):
    with pytest.raises(PluginError, match="the optimizer 'momentum' breaks the contract") as caught:
        loop.train(tiny_llama(), items(), CompletionLoss(), SETTINGS, seed=3,
                   optimizer=cls(OptimizerConfig(method="momentum")))  # fmt: skip
    assert said in str(caught.value)


class ToNaN(Plain):
    def step(self, closure=None):
        super().step()
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(torch.nan)


class Breaks(Free):
    of_class = ToNaN


def test_an_optimiser_that_makes_weights_nan_is_named():
    settings = SETTINGS.model_copy(update={"save_strategy": "no"})
    with pytest.raises(StageError, match=r"the optimizer 'free' left the weight .* not finite"):
        loop.train(tiny_llama(), items(), CompletionLoss(), settings, seed=3,
                   optimizer=Breaks(OptimizerConfig(method="free")))  # fmt: skip
