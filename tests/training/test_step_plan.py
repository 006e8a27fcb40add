"""Which items each step takes, how many steps there are, and when a checkpoint is due."""

from __future__ import annotations

import pytest

from llmft.api.settings import TrainSettings
from llmft.training.step_plan import Plan


def plan(items: int, processes: int = 1, seed: int = 1, **settings) -> Plan:
    return Plan.of(items, TrainSettings(**settings), seed, processes)


@pytest.mark.parametrize(
    ("items", "processes", "settings", "steps", "an_epoch"),
    [
        (10, 1, {"per_device_train_batch_size": 4}, 3, 3),
        (12, 1, {"per_device_train_batch_size": 4}, 3, 3),
        (10, 1, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, 2, 2),
        (10, 2, {"per_device_train_batch_size": 4}, 2, 2),
        (10, 1, {"per_device_train_batch_size": 4, "num_train_epochs": 1.5}, 5, 3),
        (10, 1, {"per_device_train_batch_size": 4, "max_steps": 7, "num_train_epochs": 9}, 7, 3),
    ],
)
def test_steps_by_hand(items, processes, settings, steps, an_epoch):
    made = plan(items, processes, **settings)
    assert (made.steps, made.steps_per_epoch) == (steps, an_epoch)


def test_a_step_is_cut_into_passes_of_the_batch_size_in_the_epochs_order():
    made = plan(11, per_device_train_batch_size=2, gradient_accumulation_steps=3, max_steps=4)
    order = made.order(0)
    assert made.step_batches(0) == [order[0:2], order[2:4], order[4:6]]
    assert made.step_batches(1) == [order[6:8], order[8:10], order[10:11]]
    assert made.step_batches(2) == [made.order(1)[i : i + 2] for i in (0, 2, 4)]
    assert sorted(order) == sorted(made.order(1)) == list(range(11))
    assert order != made.order(1)


def test_the_order_follows_from_the_seed_and_no_two_seeds_share_epochs():
    orders = [plan(30, seed=seed).order(epoch) for seed in (1, 2) for epoch in (0, 1)]
    assert len(set(map(tuple, orders))) == 4
    assert plan(30, seed=2).order(1) == orders[3]


@pytest.mark.parametrize(
    ("settings", "due"),
    [
        ({"save_strategy": "no"}, []),
        ({"save_strategy": "no", "save_steps": 1}, []),
        ({"save_strategy": "epoch", "save_steps": 1}, [3, 6, 7]),
        ({"save_strategy": "steps", "save_steps": 2}, [2, 4, 6, 7]),
        ({"save_strategy": "steps", "save_steps": 7}, [7]),
        ({"save_strategy": "steps", "save_steps": 50}, [7]),
    ],
)
def test_when_a_checkpoint_is_due(settings, due):
    train = TrainSettings(per_device_train_batch_size=4, max_steps=7, **settings)
    made = Plan.of(10, train, 1)
    assert [step for step in range(1, 8) if made.save_due(step, train)] == due
    assert made.saves(train) == len(due)
