"""Which items each step takes, how many steps there are, and when a checkpoint is due."""

from __future__ import annotations

import pytest

from llmft.api.errors import StageError
from llmft.api.evaluate_settings import EvaluateSettings
from llmft.api.train_settings import TrainSettings
from llmft.training.step_plan import Plan, refuse_endless_warmup, warmup_of


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


@pytest.mark.parametrize(
    ("items", "settings", "steps", "an_epoch"),
    [
        (11, {}, 1, 1), (12, {}, 2, 2), (17, {"num_train_epochs": 3}, 6, 2),
        (17, {"num_train_epochs": 1.4}, 3, 2), (17, {"max_steps": 5}, 5, 2),
    ],
)  # fmt: skip
def test_what_fills_no_step_is_left_out_of_each_epoch(items, settings, steps, an_epoch):
    made = plan(
        items, per_device_train_batch_size=2, gradient_accumulation_steps=3, drop_last=True,
        **settings,
    )  # fmt: skip
    assert (made.steps, made.steps_per_epoch) == (steps, an_epoch)
    for step in range(made.steps):
        epoch, at = divmod(step, an_epoch)
        taken = [n for batch in made.step_batches(step) for n in batch]
        assert taken == made.order(epoch)[6 * at : 6 * at + 6]
        assert len(taken) == 6


def test_rows_that_fill_no_step_at_all_are_refused():
    few = {"per_device_train_batch_size": 4, "drop_last": True}
    with pytest.raises(StageError, match="3 rows fill no step of 4") as found:
        plan(3, **few)
    assert found.value.faults[0].code == "E240"
    assert plan(3, per_device_train_batch_size=4).steps == 1
    assert plan(0, max_steps=5, **few).steps == 5  # streamed


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


def test_a_seed_takes_the_rows_in_the_same_order_in_every_version():
    assert [plan(7, seed=17).order(epoch) for epoch in range(3)] == [
        [3, 0, 4, 5, 6, 1, 2], [0, 3, 1, 4, 5, 2, 6], [0, 1, 2, 6, 3, 5, 4],
    ]  # fmt: skip
    assert plan(7, seed=18).order(1) == [4, 6, 2, 0, 3, 5, 1]


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


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 4), (2, 2), (4, 1)])
def test_rows_over_all_processes_are_the_same_however_they_are_dealt_out(processes, accumulation):
    settings = {"per_device_train_batch_size": 2, "train_batch_size": 8, "num_train_epochs": 2}
    made = plan(37, processes, **settings)
    assert made == plan(37, per_device_train_batch_size=2, gradient_accumulation_steps=4,
                        num_train_epochs=2)  # fmt: skip
    assert TrainSettings(**settings).accumulation(processes) == accumulation
    whole = made.step_batches(1)
    dealt = [whole[rank::processes] for rank in range(processes)]
    assert {len(batches) for batches in dealt} == {accumulation}
    assert sorted(i for b in whole for i in b) == sorted(made.order(0)[8:16])


@pytest.mark.parametrize(("settings", "what"), [
    ({"train_batch_size": 16, "gradient_accumulation_steps": 1}, "exclude each other"),
    ({"train_batch_size": 12}, "12 is not a multiple of per_device_train_batch_size: 8; write 16"),
])  # fmt: skip
def test_a_step_that_cannot_have_so_many_rows_is_a_fault_of_the_recipe(settings, what):
    with pytest.raises(ValueError, match=what):
        TrainSettings(**settings)


@pytest.mark.parametrize(("warmup", "decay", "steps", "ends"), [
    (3, 0, 3, True), (4, 0, 3, False), (1, 0, 1, False), (0, 0, 1, True),
    (2, 3, 5, True), (2, 3, 6, True), (2, 3, 4, False),
])  # fmt: skip
def test_a_stage_must_have_room_for_its_warm_up_and_its_decay(warmup, decay, steps, ends):
    parts = {"lr_scheduler_kwargs": {"num_decay_steps": decay}}
    schedule = {"lr_scheduler_type": "warmup_stable_decay", **parts} if decay else {}
    settings = TrainSettings(warmup_steps=warmup, **schedule)
    if ends:
        refuse_endless_warmup("sft", settings, steps, decay)
        return
    with pytest.raises(StageError, match="warm-up") as caught:
        refuse_endless_warmup("sft", settings, steps, decay)
    assert caught.value.faults[0].code == "E300"


@pytest.mark.parametrize(
    ("asked", "logging_steps", "due"),
    [
        ({"eval_strategy": "no"}, 1, []),
        ({"eval_strategy": "epoch"}, 1, [3, 6, 7]),
        ({"eval_strategy": "steps", "eval_steps": 5}, 1, [5, 7]),
        ({"eval_strategy": "steps", "eval_steps": 0.4}, 1, [3, 6, 7]),
        ({"eval_strategy": "steps"}, 4, [4, 7]),
    ],
)
def test_when_a_stage_is_scored(asked, logging_steps, due):
    settings = {"max_steps": 7, "per_device_train_batch_size": 4, "logging_steps": logging_steps}
    train, evaluate = TrainSettings(**settings), EvaluateSettings(**asked)
    made = Plan.of(10, train, 1)
    assert [step for step in range(1, 8) if made.evaluation_due(step, evaluate, train)] == due
    assert made.evaluations(evaluate, train) == len(due)


@pytest.mark.parametrize(("every", "due"), [(3, [3, 6, 7]), (0.3, [3, 6, 7]), (9, [7])])
def test_when_metrics_are_logged(every, due):
    train = TrainSettings(max_steps=7, logging_steps=every)
    made = Plan.of(10, train, 1)
    assert [step for step in range(1, 8) if made.log_due(step, train)] == due


@pytest.mark.parametrize(("ratio", "steps"), [(0.25, 2), (0.55, 3), (0.1, 0)])
def test_a_warm_up_as_axolotl_rounds_it(ratio, steps):
    """int(ratio * 6) steps: 1 of 1.5, which becomes 2; 3 of 3.3; none of 0.6."""
    settings = TrainSettings(warmup_ratio=ratio, warmup_rounding="axolotl")
    assert warmup_of(settings, 6) == steps


@pytest.mark.parametrize(("most", "steps"), [(2, 2), (3, 3), (9, 4)])
def test_a_warm_up_by_share_has_a_bound(most, steps):
    """0.55 of 6 steps is 3.3, rounded up to 4, but for the bound."""
    settings = TrainSettings(warmup_ratio=0.55, warmup_max_steps=most)
    assert warmup_of(settings, 6) == steps


def test_a_warm_up_is_counted_in_updates_where_rates_move_with_them():
    settings = TrainSettings(warmup_ratio=0.1)
    refuse_endless_warmup("s", settings, 1, last=3, rates_per_step=4)  # 1 and 3 of 4 updates
    with pytest.raises(StageError, match="take 1 and 4 updates, of 4 in all"):
        refuse_endless_warmup("s", settings, 1, last=4, rates_per_step=4)
    with pytest.raises(StageError, match="takes 1 of its 1 step, so the learning rate stays 0"):
        refuse_endless_warmup("s", settings, 1)
    assert warmup_of(TrainSettings(warmup_steps=2), 5, rates_per_step=3) == 6
