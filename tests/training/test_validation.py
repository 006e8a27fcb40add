"""Evaluation during training chooses and stops as transformers' Trainer and its callbacks do."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from transformers import TrainingArguments
from transformers.trainer import Trainer
from transformers.trainer_callback import (
    DefaultFlowCallback,
    EarlyStoppingCallback,
    TrainerControl,
    TrainerState,
)

from llmft.api.evaluate_settings import EvaluateSettings
from llmft.api.train_settings import TrainSettings
from llmft.training.step_plan import Plan
from llmft.training.validation import Validation, best_step, evaluated_step


def validation(values, greater=False, metric="loss", **settings) -> Validation:
    """Return evaluations that find these values, one after another."""
    left = iter(values)
    asked = EvaluateSettings(eval_strategy="steps", metric_for_best_model=metric, **settings)
    return Validation(asked, lambda step, **_: {metric: next(left)}, greater)


@pytest.mark.parametrize("greater", [True, False])
@pytest.mark.parametrize(("patience", "threshold"), [(1, 0.0), (2, 0.0), (3, 0.15), (2, 0.4)])
def test_the_best_step_and_the_stop_are_those_of_transformers(greater, patience, threshold):
    for seed in range(20):
        values = [random.Random(seed * 100 + n).random() for n in range(12)]
        ours = validation(
            values, greater, early_stopping_patience=patience, early_stopping_threshold=threshold
        )
        found = []
        for step in range(1, len(values) + 1):
            best = ours.evaluate(step, lambda: False)
            found.append((best, ours.best[0], ours.stop))
            if ours.stop:
                break
        assert found == theirs(values, greater, patience, threshold)


def theirs(values, greater, patience, threshold):
    """Return (new best, best step, stop) after each evaluation, by transformers' own code."""
    args = SimpleNamespace(metric_for_best_model="loss", greater_is_better=greater,
                           save_strategy="steps")  # fmt: skip
    state, stopping = TrainerState(), EarlyStoppingCallback(patience, threshold)
    trainer = SimpleNamespace(args=args, state=state)
    found = []
    for step, value in enumerate(values, 1):
        state.global_step, control = step, TrainerControl()
        metrics = {"eval_loss": value}
        stopping.on_evaluate(args, state, control, metrics)
        best = Trainer._determine_best_metric(trainer, metrics, None)
        found.append((best, state.best_global_step, control.should_training_stop))
        if control.should_training_stop:
            break
    return found


@pytest.mark.parametrize("eval_steps", [1, 3, 5, 20, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("logging_steps", [2, 0.3])
def test_evaluations_and_logs_are_due_when_transformers_has_them(eval_steps, logging_steps):
    settings = TrainSettings(
        max_steps=14, per_device_train_batch_size=2, logging_steps=logging_steps
    )
    plan = Plan.of(9, settings, seed=0)
    args = TrainingArguments(
        max_steps=14, eval_strategy="steps", eval_steps=eval_steps, logging_steps=logging_steps,
        report_to=[],
    )  # fmt: skip
    state = TrainerState(max_steps=14)
    state.compute_steps(args, 14)
    asked = EvaluateSettings(eval_strategy="steps", eval_steps=eval_steps)
    for step in range(1, 15):
        state.global_step = step
        control = DefaultFlowCallback().on_step_end(args, state, TrainerControl())
        assert plan.evaluation_due(step, asked, settings) == control.should_evaluate, step
        if step < 14:  # ours always logs the last one
            assert plan.log_due(step, settings) == control.should_log, step


@pytest.mark.parametrize(("asked", "due"), [
    ({}, []),
    ({"eval_strategy": "epoch"}, [3, 6, 7]),
    ({"eval_strategy": "steps"}, [2, 4, 6, 7]),
    ({"eval_strategy": "steps", "eval_steps": 0.5}, [4, 7]),
])  # fmt: skip
def test_when_a_stage_is_scored_during_training(asked, due):
    settings = TrainSettings(max_steps=7, per_device_train_batch_size=4, logging_steps=2)
    plan, asked = Plan.of(12, settings, seed=0), EvaluateSettings(**asked)
    found = [step for step in range(1, 8) if plan.evaluation_due(step, asked, settings)]
    assert found == due
    assert plan.evaluations(asked, settings) == len(due)


@pytest.mark.parametrize(("train", "saves"), [
    ({"save_strategy": "steps", "save_steps": 0.25}, [2, 4, 6, 7]),
    ({"save_strategy": "steps", "save_steps": 0.9}, [7]),
])  # fmt: skip
def test_checkpoints_are_due_by_a_share_of_all_steps(train, saves):
    settings = TrainSettings(max_steps=7, per_device_train_batch_size=4, **train)
    plan = Plan.of(12, settings, seed=0)
    assert [step for step in range(1, 8) if plan.save_due(step, settings)] == saves
    assert plan.saves(settings) == len(saves)


def test_answers_are_generated_at_every_so_many_evaluations():
    wanted = []

    def score(step, *, generate, stopping):
        wanted.append(generate)
        return {"loss": 1.0}

    asked = EvaluateSettings(eval_strategy="steps", generate_every=3)
    ours = Validation(asked, score)
    for step in range(7):
        assert ours.evaluate(step, lambda: False) is False
    assert wanted == [False, False, True, False, False, True, False]
    assert ours.best is None


def test_a_metric_that_is_scored_rarely_neither_stops_nor_chooses_in_between():
    scores = iter([{"loss": 1.0}, {"loss": 1.0, "f1": 0.4}, {"loss": 1.0}, {"loss": 1.0}])
    asked = EvaluateSettings(
        eval_strategy="steps", metric_for_best_model="f1", early_stopping_patience=1
    )
    ours = Validation(asked, lambda step, **_: next(scores), True)
    assert [ours.evaluate(step, lambda: False) for step in range(1, 5)] == [
        False, True, False, False,
    ]  # fmt: skip
    assert (ours.best, ours.waited, ours.stop, ours.count) == ((2, 0.4), 0, False, 4)


def test_a_value_that_is_no_number_is_never_the_best():
    ours = validation([float("nan"), 2.0, float("nan"), 3.0], early_stopping_patience=3)
    assert [ours.evaluate(step, lambda: False) for step in range(4)] == [False, True, False, False]
    assert (ours.best, ours.waited) == ((1, 2.0), 2)


def test_one_that_a_signal_cut_short_is_owed_and_all_is_restored():
    ours = validation([2.0, 1.0, 1.5], early_stopping_patience=2)
    ours.evaluate(3, lambda: False)
    ours.evaluate(5, lambda: False)
    ours.score = lambda step, **_: None
    assert ours.evaluate(7, lambda: True) is None
    facts = {"evaluation": ours.facts()}
    assert (evaluated_step(facts), best_step(facts)) == (5, 5)
    again = validation([])
    again.restore(facts["evaluation"])
    assert (again.count, again.step, again.best, again.waited) == (2, 5, (5, 1.0), 0)
    assert (evaluated_step({}), best_step({}), best_step({"evaluation": {"best": None}})) == (
        0, None, None,
    )  # fmt: skip
