"""What stands before an update: numbers that are not finite, and memory that is out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from llmft.api import Encoded, EncodedPair
from llmft.api.errors import StageError
from llmft.api.train_settings import TrainSettings
from llmft.training import guard
from llmft.training.updates import Update


def update(loss: float = 6.0, weight: float = 2.0, items=()) -> Update:
    numbers = list(range(10, 10 + len(items)))
    return Update([list(items)], numbers, weight, 0, sums={"loss": (loss, weight)})


@dataclass(frozen=True)
class Item:
    origin: str


@pytest.mark.parametrize(
    ("loss", "norm", "what"),
    [(6.0, 1.0, ""), (math.nan, 1.0, "loss"), (math.inf, 1.0, "loss"), (6.0, math.nan, "gradient"),
     (6.0, math.inf, "gradient"), (math.nan, math.nan, "loss")],
)  # fmt: skip
@pytest.mark.parametrize("on_nan", ["fail", "skip"])
def test_t1_an_update_is_made_of_finite_numbers_only(loss, norm, what, on_nan):
    settings = TrainSettings(on_nan=on_nan)
    rows = [Item(f"rows.jsonl:{n}") for n in range(6)]
    one = update(loss, items=rows)
    if not what:
        assert guard.may_update(one, norm, 4, settings) is True
    elif on_nan == "skip":
        assert guard.may_update(one, norm, 4, settings) is False
    else:
        with pytest.raises(StageError) as caught:
            guard.may_update(one, norm, 4, settings)
        assert caught.value.faults[0].what == (
            f"the {what} is not finite at step 5, before its update; rows:"
            " rows.jsonl:0, rows.jsonl:1, rows.jsonl:2, rows.jsonl:3 and 2 more"
        )


def test_a_large_sum_of_many_labels_is_finite():
    assert guard.may_update(update(1e308, 1e3), 1.0, 0, TrainSettings())


@pytest.mark.parametrize(
    ("rows", "shown"),
    [(2, "a:0, a:1"), (4, "a:0, a:1, a:2, a:3"), (5, "a:0, a:1, a:2, a:3 and 1 more"),
     (9, "a:0, a:1, a:2, a:3 and 5 more")],
)  # fmt: skip
def test_a_few_rows_are_all_named_and_of_many_how_many(rows, shown):
    items = [Item(f"a:{n}") for n in range(rows)]
    with pytest.raises(StageError) as caught:
        guard.may_update(update(math.nan, items=items), 1, 0, TrainSettings())
    assert caught.value.faults[0].what.endswith(f"; rows: {shown}")


@pytest.mark.parametrize(
    ("losses", "refused"), [([], False), ([None, 1.0], False), ([None], True), ([0.0], False)]
)
def test_t1_where_no_update_was_made_nothing_was_learnt(losses, refused):
    if refused:
        with pytest.raises(StageError, match=r"E301.*no update of 1 steps was finite"):
            guard.refuse_none_learnt(losses)
    else:
        guard.refuse_none_learnt(losses)


class OutOfMemoryError(Exception):
    """torch has errors of this name, for each kind of device."""


@pytest.mark.parametrize(
    ("error", "out"),
    [
        (MemoryError(), True),
        (OutOfMemoryError("on the device"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_t4_what_says_that_memory_is_out(error, out):
    assert guard.is_out_of_memory(error) is out
    assert (guard.out_of_memory(error, None, 0, TrainSettings()) is not None) is out


def row(tokens: int, origin: str) -> Encoded:
    return Encoded((7,) * tokens, (7,) * tokens, origin)


CHECKPOINTED, OFFLOADED = {"gradient_checkpointing": True}, {"activation_offloading": True}
PAIR = EncodedPair(row(5, "b:1"), row(30, "b:1"), 3, None, "b:1")


@pytest.mark.parametrize(
    ("items", "longest"),
    [
        ([row(3, "a:1"), row(12, "a:2"), row(9, "a:3")], "'a:2' with 12 tokens"),
        ([row(3, "a:1"), PAIR], "'b:1' with 30 tokens"),
        ([(row(3, "a:1"), row(4, "a:2")), (row(2, "c:1"),)], "'row 10' with 7 tokens"),
        ([row(1200, "a:1")], "'a:1' with 1,200 tokens"),
        ([object()], ""),
        ([], ""),
    ],
)
def test_t4_the_longest_row_of_the_step_is_named(items, longest):
    fault = guard.out_of_memory(MemoryError(), update(items=items), 6, TrainSettings()).faults[0]
    where = f"; the longest row of the step is {longest}" if longest else ""
    assert (fault.code, fault.what) == ("E205", f"out of memory at step 7{where}")


@pytest.mark.parametrize(
    ("settings", "ways"),
    [
        (
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
            "lower train.per_device_train_batch_size (now 2) and raise"
            " train.gradient_accumulation_steps (now 3) by as much;"
            " set train.gradient_checkpointing: true; lower train.max_length (now the model's"
            " limit)",
        ),
        (
            {"per_device_train_batch_size": 1, "max_length": 99},
            "set train.gradient_checkpointing: true; lower train.max_length (now 99)",
        ),
        (
            {"per_device_train_batch_size": 1, "gradient_checkpointing": True},
            "lower train.max_length (now the model's limit)",
        ),
        (
            {
                "per_device_train_batch_size": 1,
                "gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"every_n_layers": 3},
            },
            "lower train.gradient_checkpointing_kwargs.every_n_layers (now 3);"
            " lower train.max_length (now the model's limit)",
        ),
    ],
)
def test_t4_what_to_lower_is_said_in_the_order_of_its_cost(settings, ways):
    found = guard.out_of_memory(MemoryError(), None, 0, TrainSettings(**settings))
    assert found.faults[0].fix == f"in this order: {ways}"


def test_layers_inputs_are_to_be_put_elsewhere_only_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for block, said in (({}, False), (CHECKPOINTED, True), ({**CHECKPOINTED, **OFFLOADED}, False)):
        fix = guard.out_of_memory(MemoryError(), None, 0, TrainSettings(**block)).faults[0].fix
        assert ("set train.activation_offloading: true" in fix) is said


def test_an_operation_without_a_deterministic_kernel_is_named():
    """torch's own words, for an operation on another device that has none."""
    told = "cumsum_cuda_kernel does not have a deterministic implementation, but you set 'torch."
    fault = guard.not_deterministic(RuntimeError(told), 6).faults[0]
    assert (fault.code, "step 7 'cumsum_cuda_kernel'" in fault.what) == ("E236", True)
    assert guard.not_deterministic(RuntimeError("something else"), 6) is None
