"""Methods of training in a recipe: builtin ones by name, any as a block, each checked."""

from __future__ import annotations

import pytest

from tests.recipes.fakes import GOOD

ASKED = "      num_train_epochs: 1\n"


def train(text: str, evaluate: str = "") -> str:
    assert ASKED in GOOD
    made = GOOD.replace(ASKED, f"      {text}\n")
    return made.replace("metrics: [exact_match, f1], limit: 500", evaluate) if evaluate else made


@pytest.mark.parametrize(("text", "evaluate"), [
    ("lr_scheduler_type: cosine", ""),
    ("lr_scheduler_type: {method: cosine, num_cycles: 1.5}", ""),
    ("lr_scheduler_type: {method: halving}", ""),
    ("optim: sgd", ""),
    ("optim: {method: sgd, momentum: 0.9}", ""),
    ("optim: {method: steps}", ""),
    ("lr_scheduler_type: {method: reduce_lr_on_plateau, patience: 1}", "eval_strategy: epoch"),
    ("lr_scheduler_type: {method: greedy, min_lr: 1e-6}", "eval_strategy: epoch"),
])  # fmt: skip
def test_what_works_is_taken(faults, text, evaluate):
    assert not faults(train(text, evaluate))


@pytest.mark.parametrize(("text", "code", "said", "fix"), [
    ("lr_scheduler_type: halving", "E025", "must be one of constant", "write {method: halving}"),
    ("optim: steps", "E025", "must be one of adamw_torch", "write {method: steps}"),
    ("optim: {method: sgd, momentum: 1.5}", "E023", "less than 1", ""),
    ("optim: {method: sgd, beta: 0.5}", "E020", "beta", ""),
    ("optim: {method: missing}", "E206", "optim missing needs the package no_such_package", "pip"),
    ("lr_scheduler_type: halvin", "E025", "must be one of constant", ""),
    ("lr_scheduler_type: {method: cosin}", "E024", "no schedule is called 'cosin'", ""),
    ("lr_scheduler_type: {method: cosine, power: 2}", "E020", "power", ""),
    ("lr_scheduler_type: {method: warmup_stable_decay}", "E021", "'num_decay_steps'", ""),
    ("lr_scheduler_type: {method: cosine_with_min_lr, min_lr: 1.0}", "E040",
     "min_lr is not below learning_rate", "lower it"),
    ("lr_scheduler_type: {method: cosine_with_min_lr}", "E040", "min_lr and min_lr_rate", ""),
    ("lr_scheduler_type: {method: cosine_with_restarts, num_cycles: 1.5}", "E040",
     "a whole number", "round it"),
    ("lr_scheduler_type: {method: polynomial, lr_end: 1.0}", "E040", "it decays to 1", "raise"),
    ("{lr_scheduler_type: {method: constant}, warmup_steps: 2}", "E040",
     "the 'constant' schedule has no warm-up", "drop warmup_steps"),
    ("lr_scheduler_type: {method: reduce_lr_on_plateau}", "E040", "neither is scored there",
     "eval_strategy: epoch"),
    ("{lr_scheduler_type: {method: cosine}, lr_scheduler_kwargs: {num_cycles: 2.0}}", "E040",
     "lr_scheduler_kwargs has no effect", "write num_cycles into that block"),
    ("lr_scheduler_type: {method: halving, at: 13}", "E502", "ZeroDivisionError: thirteen", ""),
])  # fmt: skip
def test_what_cannot_work_is_refused(faults, text, code, said, fix):
    flow = text.startswith("{")
    made = train(text) if not flow else GOOD.replace(
        "    train:\n      num_train_epochs: 1\n      learning_rate: 2e-4\n"
        "      per_device_train_batch_size: 8\n", f"    train: {text}\n"
    )  # fmt: skip
    assert made != GOOD
    found = faults(made)
    assert [fault.code for fault in found] == [code], found
    assert said in found[0].what
    assert fix in found[0].fix


@pytest.mark.parametrize("name", ["greedy", "{method: greedy}"])
def test_greedys_floor_above_the_rate_is_refused(faults, name):
    (fault,) = faults(train(f"lr_scheduler_type: {name}", "eval_strategy: epoch"))
    assert (fault.code, fault.path[-6:]) == ("E040", "min_lr")
    assert fault.what == "min_lr is not below learning_rate: it is 0.001 by default"
    assert fault.place.line, "it has a place, though the key is not there"
