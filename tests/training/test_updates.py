"""Where an update's items come from: which, in which passes, by which weight."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import count, islice
from types import SimpleNamespace

import pytest

from llmft.api.train_settings import TrainSettings
from llmft.modeling.decoding import Stopped
from llmft.system import distributed
from llmft.training.step_plan import Plan
from llmft.training.updates import FixedItems, NextItems, OnlineItems, Update


def plan(items: int, batch: int, accumulation: int = 1, steps: int | None = None) -> Plan:
    settings = TrainSettings(
        per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        max_steps=steps,
    )  # fmt: skip
    return Plan.of(items, settings, seed=1)


def test_a_step_takes_its_items_in_passes_and_their_weight_is_all_of_theirs():
    items = [f"item {n}" for n in range(7)]
    objective = SimpleNamespace(weight=lambda batch: 10.0 * len(batch))
    source = FixedItems(items, objective, plan(7, 2, 2))
    (first,), (last,) = source.updates(0, None), source.updates(1, None)
    assert [len(one) for one in first.passes] == [2, 2]
    assert [len(one) for one in last.passes] == [2, 1]
    assert (first.weight, last.weight) == (40.0, 30.0)
    assert (first.fresh, last.fresh) == (4, 3)
    assert sorted([*first.numbers, *last.numbers]) == list(range(7))
    taken = [item for update in (first, last) for one in update.passes for item in one]
    assert taken == [items[number] for number in [*first.numbers, *last.numbers]]
    assert source.metrics() == {}


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_streamed_items_are_dealt_out_and_weigh_the_same_in_each_process(monkeypatch, processes):
    objective = SimpleNamespace(weight=lambda batch: float(sum(batch)))
    monkeypatch.setattr(distributed, "count", lambda: processes)
    taken, weights = {}, set()
    for rank in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        numbers = count()
        stream = SimpleNamespace(take=lambda n, numbers=numbers: list(islice(numbers, n)))
        source = NextItems(stream, objective, plan(0, 2, 3, steps=2))
        for step in range(2):
            (update,) = source.updates(step, None)
            weights.add((step, update.weight, update.fresh))
            assert all(len(one) == 2 for one in update.passes)
            items = [item for one in update.passes for item in one]
            assert items == update.numbers
            taken[rank] = taken.get(rank, []) + items
    assert weights == {(0, 15.0, 6), (1, 51.0, 6)}
    assert sorted(item for items in taken.values() for item in items) == list(range(12))
    assert source.metrics() == {}


def test_items_are_named_by_where_they_come_from_or_by_their_number():
    named = SimpleNamespace(origin="rows.jsonl:3")
    assert Update([[named, "x"], ["y"]], [5, 6, 9], 1.0, 3).names == [
        "rows.jsonl:3", "row 6", "row 9"
    ]  # fmt: skip


class Drawing:
    """An online objective that draws two items to each prompt, and learns from them in halves."""

    items_per_prompt = 2

    def __init__(self, most: float = 9.0) -> None:
        self.asked: list = []
        self.seen: list[dict] = []
        self.most = most

    def sample_rollouts(self, prompts, numbers, step, stopping):
        if stopping():
            raise Stopped
        self.asked.append((list(prompts), list(numbers), step))
        return [f"{prompt}/{k}" for prompt in prompts for k in range(2)]

    def updates(self, items, step):
        order = list(range(items))
        yield order[: items // 2 + 1]
        yield order[items // 2 + 1 :]
        yield order

    def weight(self, items) -> float:
        return 3.0 * len(items)

    def should_continue(self, means) -> bool:
        self.seen.append(dict(means))
        return means["kl"] <= self.most

    def step_metrics(self):
        return {"reward": (1.0, 2.0)}


def drawn(objective: Drawing, steps: int = 1, kl: tuple[float, ...] = (1.0,) * 3):
    prompts = [f"p{n}" for n in range(3)]
    source = OnlineItems(prompts, objective, plan(3, 2, 2, steps), nullcontext)
    found = []
    for update, value in zip(source.updates(0, lambda: False), kl, strict=False):
        found.append(update)
        update.sums = {"kl": (2 * value, 2.0), "empty": (0.0, 0.0)}
    return source, found


def test_a_steps_prompts_are_answered_and_learnt_from_in_the_updates_that_are_asked_for():
    objective = Drawing()
    source, (first, second, all_again) = drawn(objective)
    ((prompts, numbers, step),) = objective.asked
    assert sorted(prompts) == ["p0", "p1", "p2"]
    assert (numbers, step) == ([0, 1, 2], 0)
    answers = [f"{prompt}/{k}" for prompt in prompts for k in range(2)]
    assert first.passes == [answers[:2], answers[2:4]]
    assert second.passes == [answers[4:]]
    assert all_again.passes == [answers[:2], answers[2:4], answers[4:]]
    assert first.numbers == [0, 1, 2, 3]
    assert [one.weight for one in (first, second, all_again)] == [12.0, 6.0, 18.0]
    assert [one.fresh for one in (first, second, all_again)] == [6, 0, 0], "counted once"
    assert objective.seen[0] == {"kl": 1.0}, "a mean of no weight is none"
    assert source.metrics() == {"reward": (1.0, 2.0)}


@pytest.mark.parametrize(("kl", "updates"), [((1.0, 1.0, 1.0), 3), ((9.5, 1.0), 1), ((1, 9.1), 2)])
def test_a_steps_updates_end_when_the_objective_has_enough(kl, updates):
    _, found = drawn(Drawing(), kl=(*kl, *[1.0] * 3))
    assert len(found) == updates


def test_a_stop_that_is_asked_for_comes_before_anything_is_learnt():
    source = OnlineItems(["p"], Drawing(), plan(1, 2, 1, 1), nullcontext)
    with pytest.raises(Stopped):
        next(iter(source.updates(0, lambda: True)))
