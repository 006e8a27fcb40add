"""Where an optimiser update's items come from: a fixed list, or drawn by the model as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from llmft.api import Objective, OnlineObjective
from llmft.data.streaming import StreamedItems
from llmft.system import distributed
from llmft.training.step_plan import Plan
from llmft.training.token_budget import passes_of

Sums = Mapping[str, tuple[float, float]]


@dataclass
class Update:
    """One optimiser update: the items of each forward pass of this process, and their numbers.

    weight: of all processes' items; their summed losses are divided by it. fresh: how many items
    are seen for the first time. sums: what the loop found, given back before it asks for the next.
    idle: passes that only keep this process in step with others, which have more; they teach
    nothing.
    """

    passes: list[list[Any]]
    numbers: list[int]
    weight: float
    fresh: int
    sums: Sums = field(default_factory=dict)
    idle: list[list[Any]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Return where this process's items come from."""
        items = [item for one in self.passes for item in one]
        pairs = zip(items, self.numbers, strict=True)
        return [getattr(item, "origin", "") or f"row {number}" for item, number in pairs]


@dataclass(frozen=True)
class Budget:
    """How many tokens a forward pass has at most. padded: each of its rows takes the longest's."""

    tokens: int
    padded: bool


class FixedItems:
    """Items that are there before training: a step is one update of the next ones.

    budget: by which a step's items are dealt to passes; None: by their number.
    """

    def __init__(
        self, items: Sequence[Any], objective: Objective, plan: Plan, budget: Budget | None = None
    ) -> None:
        self.items, self.objective, self.plan, self.budget = items, objective, plan, budget

    def updates(self, step: int, stopping: Callable[[], bool]) -> Iterator[Update]:
        """Yield the step's one update."""
        batches = self.plan.step_batches(step)
        if self.budget is not None:
            whole = [i for batch in batches for i in batch]
            dealt = _within([self.items[i] for i in whole], self.budget)
            batches = [[whole[place] for place in one] for one in dealt]
        passes = [[self.items[i] for i in batch] for batch in batches]
        yield _update(passes, batches, self.objective)

    def metrics(self) -> Sums:
        """Return what a step is measured by besides its passes: nothing."""
        return {}


class NextItems:
    """Items that are read during training: a step is one update of the next ones.

    Of several processes each reads all of them, and takes its share. budget: as for `FixedItems`.
    """

    def __init__(
        self, items: StreamedItems, objective: Objective, plan: Plan, budget: Budget | None = None
    ) -> None:
        self.items, self.objective, self.plan, self.budget = items, objective, plan, budget

    def updates(self, step: int, stopping: Callable[[], bool]) -> Iterator[Update]:
        """Yield the step's one update."""
        size, per_step = self.plan.batch, self.plan.rows_per_step
        chosen = self.items.take(per_step)
        places = [list(range(i, i + size)) for i in range(0, per_step, size)]
        if self.budget is not None:
            places = _within(chosen, self.budget)
        passes = [[chosen[i] for i in some] for some in places]
        numbers = [[step * per_step + i for i in some] for some in places]
        yield _update(passes, numbers, self.objective)

    def metrics(self) -> Sums:
        """Return what a step is measured by besides its passes: nothing."""
        return {}


def _update(passes: list[list[Any]], numbers: list[list[int]], objective: Objective) -> Update:
    """Return this process's share of an update's passes. numbers: of the items of each.

    In an epoch's last step it may have none.
    """
    share = slice(distributed.rank(), None, distributed.count())
    mine, weight = passes[share], sum(objective.weight(items) for items in passes)
    own = [number for one in numbers[share] for number in one]
    lacking = math.ceil(len(passes) / distributed.count()) - len(mine)
    idle = [passes[-1]] * lacking if distributed.keeps_step() else []
    return Update(mine, own, weight, sum(map(len, passes)), idle=idle)


def _within(items: Sequence[Any], budget: Budget) -> list[list[int]]:
    count = distributed.count()
    return passes_of(items, budget.tokens, padded=budget.padded, processes=count)


class OnlineItems:
    """Items that the model draws at each step's start: several updates learn from them.

    around: what a forward pass runs in, such as autocast.
    """

    def __init__(
        self,
        prompts: Sequence[Any],
        objective: OnlineObjective,
        plan: Plan,
        around: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.prompts, self.objective, self.plan, self.around = prompts, objective, plan, around

    def updates(self, step: int, stopping: Callable[[], bool]) -> Iterator[Update]:
        """Draw the step's items, and yield updates until the objective has enough of them.

        Raises Stopped, before anything is changed, once `stopping` says so.
        """
        chosen = [i for batch in self.plan.step_batches(step) for i in batch]
        numbers = range(len(chosen))[distributed.rank() :: distributed.count()]
        prompts = [self.prompts[chosen[n]] for n in numbers]
        with self.around():
            drawn = self.objective.sample_rollouts(prompts, numbers, step, stopping)
        each = self.objective.items_per_prompt
        mine = {n * each + k: drawn[place * each + k]
                for place, n in enumerate(numbers) for k in range(each)}  # fmt: skip
        total = len(chosen) * each
        fresh = total
        for minibatch in self.objective.updates(total, step):
            own_numbers = [number for number in minibatch if number in mine]
            items = [mine[number] for number in own_numbers]
            size = self.plan.batch
            passes = [items[i : i + size] for i in range(0, len(items), size)]
            own = torch.tensor(self.objective.weight(items) if items else 0.0, dtype=torch.float64)
            update = Update(passes, own_numbers, float(distributed.all_reduce_sum(own)), fresh)
            yield update
            fresh = 0
            if not self.objective.should_continue(
                {k: s / w for k, (s, w) in update.sums.items() if w}
            ):
                return

    def metrics(self) -> Sums:
        """Return what the step's items are measured by, of all processes."""
        return self.objective.step_metrics()
