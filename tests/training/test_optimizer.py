"""Which parameters learn at which rate, and by which numbers."""

from __future__ import annotations

import math

import pytest
import torch

from llmft.api.settings import TrainSettings
from llmft.training.optimizer import joined_groups, make_optimizer, make_schedule

A, B, HEAD = (torch.nn.Parameter(torch.zeros(n)) for n in (1, 2, 3))


def sizes(groups):
    return [([p.numel() for p in group["params"]], group.get("lr")) for group in groups]


def test_what_asks_for_nothing_is_one_group():
    assert sizes(joined_groups([A, B, HEAD], None, ())) == [([1, 2, 3], None)]


def test_a_group_beside_the_adapter_takes_its_parameters_out_of_the_adapters_groups():
    head = [{"params": [HEAD], "lr": 0.5}]
    assert sizes(joined_groups([A, B, HEAD], None, head)) == [([1, 2], None), ([3], 0.5)]
    own = [{"params": [A, HEAD]}, {"params": [B], "lr": 0.1}]
    expected = [([1], None), ([2], 0.1), ([3], 0.5)]
    assert sizes(joined_groups([A, B, HEAD], own, head)) == expected


def test_a_group_that_is_left_empty_is_none():
    head = [{"params": [HEAD], "lr": 0.5}]
    own = [{"params": [HEAD]}, {"params": [A, B], "lr": 0.1}]
    assert sizes(joined_groups([A, B, HEAD], own, head)) == [([1, 2], 0.1), ([3], 0.5)]


GRADIENTS = (0.4, -1.0, 0.25)
ADAM = {
    "learning_rate": 0.05, "adam_beta1": 0.6, "adam_beta2": 0.7, "adam_epsilon": 0.3,
    "weight_decay": 0.5,
}  # fmt: skip


def adamw_by_hand(weight: float, *, lr=0.05, beta1=0.6, beta2=0.7, eps=0.3, decay=0.5) -> float:
    """Loshchilov and Hutter 2019, algorithm 2, written out for one number."""
    first = second = 0.0
    for step, gradient in enumerate(GRADIENTS, 1):
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        unbiased = first / (1 - beta1**step), second / (1 - beta2**step)
        weight -= lr * decay * weight
        weight -= lr * unbiased[0] / (math.sqrt(unbiased[1]) + eps)
    return weight


def trained(settings: TrainSettings, start: float = 2.0) -> float:
    weight = torch.nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = make_optimizer([{"params": [weight]}], settings)
    for gradient in GRADIENTS:
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
    return float(weight.detach())


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_adamw_with_no_number_at_its_default_is_the_papers(optim):
    assert trained(TrainSettings(optim=optim, **ADAM)) == pytest.approx(adamw_by_hand(2.0))


def test_sgd_decays_its_weights_with_the_gradient():
    settings = TrainSettings(optim="sgd", learning_rate=0.05, weight_decay=0.5)
    weight = 2.0
    for gradient in GRADIENTS:
        weight -= 0.05 * (gradient + 0.5 * weight)
    assert trained(settings) == pytest.approx(weight)


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"])
def test_the_optimisers_of_bitsandbytes_get_the_same_numbers(optim):
    bitsandbytes = pytest.importorskip("bitsandbytes").optim
    classes = {
        "adamw_8bit": bitsandbytes.AdamW8bit, "paged_adamw_8bit": bitsandbytes.PagedAdamW8bit,
        "paged_adamw_32bit": bitsandbytes.PagedAdamW32bit,
    }  # fmt: skip
    optimizer = make_optimizer([{"params": [A]}], TrainSettings(optim=optim, **ADAM))
    assert type(optimizer) is classes[optim]
    (group,) = optimizer.param_groups
    told = [group[name] for name in ("lr", "betas", "eps", "weight_decay")]
    assert told == [0.05, (0.6, 0.7), 0.3, 0.5]


def test_a_groups_own_rate_goes_before_the_settings():
    groups = [{"params": [A]}, {"params": [B], "lr": 0.5}]
    rates = [g["lr"] for g in make_optimizer(groups, TrainSettings(**ADAM)).param_groups]
    assert rates == [0.05, 0.5]


def rates(steps: int, **settings) -> list[float]:
    optimizer = make_optimizer([{"params": [A]}], TrainSettings(optim="sgd", **settings))
    schedule = make_schedule(optimizer, TrainSettings(optim="sgd", **settings), steps)
    found = []
    for _ in range(steps):
        found.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return found


def test_a_part_of_a_step_of_warm_up_is_a_whole_one():
    """A ratio of 0.25 of 6 steps is 1.5 of them: two, as transformers rounds."""
    found = rates(6, learning_rate=1.0, lr_scheduler_type="constant_with_warmup", warmup_ratio=0.25)
    assert found == pytest.approx([0, 1 / 2, 1, 1, 1, 1])


SCHEDULES = {
    "constant": ({}, [1, 1, 1, 1]),
    "constant_with_warmup": ({"warmup_steps": 2}, [0, 0.5, 1, 1]),
    "linear": ({"warmup_steps": 1}, [0, 1, 2 / 3, 1 / 3]),
    "cosine": ({}, [1, (1 + math.cos(math.pi / 4)) / 2, 0.5, (1 + math.cos(3 * math.pi / 4)) / 2]),
    "polynomial": ({}, [1, 0.75, 0.5, 0.25]),
    "inverse_sqrt": ({"warmup_steps": 1}, [0, 1, math.sqrt(1 / 2), math.sqrt(1 / 3)]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_schedule_by_hand(name):
    extra, expected = SCHEDULES[name]
    found = rates(4, learning_rate=1.0, lr_scheduler_type=name, **extra)
    assert found == pytest.approx(expected, abs=1e-6)
