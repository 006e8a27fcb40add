"""The builtin schedules pass the public kit, and give the same rates by name and as a block."""

from __future__ import annotations

import json

import pytest
import torch
from llmft_schedules import curves
from llmft_schedules.greedy import Greedy
from llmft_schedules.plateau import ReduceLrOnPlateau

from llmft.api import Schedule, TrainingSpan
from llmft.api.train_settings import TrainSettings
from llmft.testing import ScheduleContract
from llmft.training.learning_rates import LearningRates
from llmft.training.optimizer import installed_method, make_schedule


class TestConstant(ScheduleContract):
    method_class = curves.Constant


class TestConstantWithWarmup(ScheduleContract):
    method_class = curves.ConstantWithWarmup


class TestLinear(ScheduleContract):
    method_class = curves.Linear


class TestCosine(ScheduleContract):
    method_class = curves.Cosine
    configs = [{}, {"num_cycles": 1.5}]


class TestCosineWithRestarts(ScheduleContract):
    method_class = curves.CosineWithRestarts
    configs = [{}, {"num_cycles": 3.0}]


class TestCosineWithMinLr(ScheduleContract):
    method_class = curves.CosineWithMinLr
    configs = [{"min_lr": 1e-3}, {"min_lr_rate": 0.2, "num_cycles": 0.75}]


class TestCosineWarmupWithMinLr(ScheduleContract):
    method_class = curves.CosineWarmupWithMinLr
    configs = [{"min_lr_rate": 0.2, "warmup_lr_rate": 0.1}]


class TestPolynomial(ScheduleContract):
    method_class = curves.Polynomial
    configs = [{}, {"lr_end": 1e-3, "power": 2.0}]


class TestInverseSqrt(ScheduleContract):
    method_class = curves.InverseSqrt
    configs = [{}, {"timescale": 7}]


class TestWarmupStableDecay(ScheduleContract):
    method_class = curves.WarmupStableDecay
    configs = [
        {"num_decay_steps": 4},
        {"num_decay_steps": 2, "warmup_type": "cosine", "decay_type": "1-sqrt",
         "min_lr_ratio": 0.25, "num_cycles": 0.25},
    ]  # fmt: skip


class TestReduceLrOnPlateau(ScheduleContract):
    method_class = ReduceLrOnPlateau
    configs = [
        {},
        {"factor": 0.5, "patience": 0, "threshold": 0.2, "threshold_mode": "abs", "cooldown": 1,
         "min_lr": 1e-3},
    ]  # fmt: skip


class TestGreedy(ScheduleContract):
    method_class = Greedy
    configs = [
        {},
        {"patience": 0, "factor": 0.5, "max_lr": 1e-2, "cooldown": 1, "warmup": 1},
        {"patience": 1, "smooth": True, "window_size": 3, "min_lr": 1e-4, "reset_start": 2,
         "max_lr": 1e-2},
    ]  # fmt: skip


def sgd(*rates: float) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=rates[0])


@pytest.mark.parametrize(("name", "kwargs"), [
    ("linear", {}), ("cosine", {"num_cycles": 1.5}), ("inverse_sqrt", {"timescale": 7}),
    ("warmup_stable_decay", {"num_decay_steps": 4, "decay_type": "1-sqrt"}),
    ("cosine_with_restarts", {"num_cycles": 3.0}), ("cosine_with_min_lr", {"min_lr": 0.01}),
])  # fmt: skip
def test_a_block_gives_the_rates_of_its_name_and_those_of_torchs_own_scheduler(name, kwargs):
    from transformers import get_scheduler

    shared = {"learning_rate": 0.05, "warmup_steps": 3}
    named = TrainSettings(lr_scheduler_type=name, lr_scheduler_kwargs=kwargs, **shared)
    cls = type(installed_method("schedule", named))
    block = cls.Config(method=name, **kwargs)
    as_block = TrainSettings(lr_scheduler_type=block, **shared)
    ours, theirs = sgd(0.05, 0.8), sgd(0.05, 0.8)
    one = make_schedule(ours, named, 20)
    other = make_schedule(sgd(0.05, 0.8), as_block, 20)
    plain = {key: int(value) if name.endswith("restarts") else value
             for key, value in kwargs.items()}  # fmt: skip
    reference = get_scheduler(name, theirs, num_warmup_steps=3, num_training_steps=20,
                              scheduler_specific_kwargs=plain)  # fmt: skip
    for _ in range(20):
        assert list(one.get_last_lr()) == list(other.get_last_lr()) == reference.get_last_lr()
        assert [g["lr"] for g in ours.param_groups] == [g["lr"] for g in theirs.param_groups]
        one.step()
        other.step()
        theirs.step()
        reference.step()


@pytest.mark.parametrize("greater", [False, True])
def test_the_plateau_is_torchs_own_to_the_bit(greater):
    settings = TrainSettings(
        lr_scheduler_type="reduce_lr_on_plateau", learning_rate=0.03,
        lr_scheduler_kwargs={"factor": 0.3, "patience": 1, "min_lr": 1e-4, "cooldown": 1},
    )  # fmt: skip
    ours, theirs = sgd(0.03, 0.07), sgd(0.03, 0.07)
    rates = make_schedule(ours, settings, 50, greater_is_better=greater)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        theirs, mode="max" if greater else "min", factor=0.3, patience=1, min_lr=1e-4, cooldown=1
    )
    seen = set()
    for score in (5.0, 4.0, 4.5, 4.6, 4.7, 3.0, 3.1, 3.2, 3.3, 3.4, 3.5, 3.6, 9.0, 9.0, 9.0, 9.0):
        rates.step()
        rates.scored(score)
        reference.step(score)
        assert [g["lr"] for g in ours.param_groups] == [g["lr"] for g in theirs.param_groups]
        seen.add(ours.param_groups[0]["lr"])
    assert len(seen) > 3


@pytest.mark.parametrize("greater", [False, True])
@pytest.mark.parametrize("kwargs", [
    {"factor": 0.5, "patience": 0, "min_lr": 1e-4, "max_lr": 0.2, "cooldown": 1, "warmup": 1},
    {"factor": 0.7, "patience": 1, "min_lr": 0.02, "smooth": True, "window_size": 3,
     "reset_start": 2, "threshold": 0.01, "threshold_mode": "rel", "eps": 1e-6},
])  # fmt: skip
def test_greedy_is_transformers_own_to_the_bit_also_after_a_resume(kwargs, greater):
    """Beside `get_scheduler("greedy")`; at each evaluation an object of its own goes on."""
    from transformers import get_scheduler

    settings = TrainSettings(
        lr_scheduler_type="greedy", learning_rate=0.03, lr_scheduler_kwargs=kwargs
    )
    ours, theirs = sgd(0.03, 0.07), sgd(0.03, 0.07)
    rates = make_schedule(ours, settings, 50, greater_is_better=greater)
    reference = get_scheduler(
        "greedy", theirs, scheduler_specific_kwargs={"mode": "max" if greater else "min", **kwargs}
    )
    seen = set()
    scores = (5.0, 4.0, 3.0, 3.5, 3.6, 3.7, 2.0, 2.1, 2.2, 2.3, 2.4, 2.5, 9.0, 9.5, 9.6, 9.7, 9.8)
    for step, score in enumerate(scores, 1):
        rates.step()
        rates.scored(score)
        reference.step(score)
        assert [g["lr"] for g in ours.param_groups] == [g["lr"] for g in theirs.param_groups]
        seen.add(ours.param_groups[0]["lr"])
        facts = json.loads(json.dumps(rates.facts()))
        ours = sgd(0.03, 0.07)
        rates = make_schedule(ours, settings, 50, greater_is_better=greater)
        rates.restore(step, facts)
    assert len(seen) > 3
    assert max(seen) > 0.03 or kwargs["patience"], "it rises above where it began"


def test_the_default_of_min_lr_is_no_floor_above_the_rate():
    """transformers' 1e-3 lies above most rates of fine-tuning: it would never fall."""
    ((key, what, fix),) = Greedy(Greedy.Config(method="greedy")).check(TrainSettings())
    assert key == ("lr_scheduler_type", "min_lr")
    assert what == "min_lr is not below learning_rate: it is 0.001 by default"
    assert fix == "set min_lr lower"
    low = Greedy(Greedy.Config(method="greedy", min_lr=1e-6))
    assert not list(low.check(TrainSettings()))
    high = Greedy(Greedy.Config(method="greedy", min_lr=1e-6, max_lr=1e-5))
    ((key, what, _),) = high.check(TrainSettings())
    assert (key[-1], what) == ("max_lr", "max_lr is below learning_rate")


class Odd(Schedule):
    method = "odd"
    Config = curves.ScheduleConfig

    def __init__(self, value):
        super().__init__(curves.ScheduleConfig(method="odd"))
        self.value = value

    def factor(self, step, span):
        return self.value if step else 1.0


@pytest.mark.parametrize(("value", "said"), [
    (float("nan"), "the rate of step 1 is nan"), (-0.5, "the rate of step 1 is -0.05"),
    (float("inf"), "the rate of step 1 is inf"),
    ("1", "the factor of step 1 is '1'; a number is wanted"),
])  # fmt: skip
def test_a_rate_that_is_none_names_the_schedule(value, said):
    from llmft.api.errors import PluginError

    rates = LearningRates(sgd(0.1), Odd(value), TrainingSpan(4, 0, 0.1))
    with pytest.raises(PluginError, match="the schedule 'odd' breaks the contract") as caught:
        rates.step()
    assert said in str(caught.value)
