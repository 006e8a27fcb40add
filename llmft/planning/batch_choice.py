"""The rows that take the most memory: only they need to be computed with to know a stage's peak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmft.api.train_settings import TrainSettings
from llmft.data.packing import bins_of
from llmft.modeling.counting import token_rows, tokens_in
from llmft.planning.processes import ALONE, Processes
from llmft.training.step_plan import Plan
from llmft.training.token_budget import passes_of

STEPS_LOOKED_AT = 20_000


@dataclass(frozen=True, slots=True)
class Counts:
    """What a stage trains on.

    sampled: the share of the rows that was tokenised. passes_per_step: of the process that has the
    most. busiest: the share of a step's tokens that the process has which has the most, on average.
    padding: how many times the tokens its passes would take if each row took as much as the longest
    beside it.
    """

    rows: int
    tokens: int
    trained_tokens: int
    longest: int
    items: int
    steps: int
    sampled: float = 1.0
    passes_per_step: float = 1.0
    busiest: float = 1.0
    padding: float = 1.0


@dataclass(frozen=True, slots=True)
class Chosen:
    """The items to compute with: whole batches of training, and one of evaluation."""

    train: list[list[Any]]
    judged: list[Any]

    @property
    def items(self) -> list[Any]:
        """All of them, those of evaluation first."""
        return [*self.judged, *(item for batch in self.train for item in batch)]

    def batches_of(self, items: Sequence[Any]) -> list[list[Any]]:
        """Return the training batches out of what an alignment made of `items`, one for one."""
        at, found = len(self.judged), []
        for batch in self.train:
            found.append(list(items[at : at + len(batch)]))
            at += len(batch)
        return found


def longest_in(item: Any) -> int:
    """Return the tokens of an item's longest row."""
    return max((len(row.input_ids) for row in token_rows(item)), default=0)


def columns_in(batch: Sequence[Any]) -> int:
    """Return how many tokens a pass of items takes where each row takes as much as the longest."""
    rows = [row for item in batch for row in token_rows(item)]
    return len(rows) * max((len(row.input_ids) for row in rows), default=0)


def choose(
    items: Sequence[Any],
    train: TrainSettings,
    seed: int,
    max_length: int | None,
    share: float,
    *,
    padded: bool = False,
    processes: Processes = ALONE,
) -> tuple[Counts, Chosen]:
    """Return a stage's numbers, and the items that take the most memory.

    They are of batches that the loop will really take, in the order that the seed gives. share:
    how much of the rows `items` stand for; numbers are scaled up, and batches then are examples.
    padded: whether each row of a pass takes as much as its longest.
    """
    tokens = [tokens_in(item) for item in items]
    labels = [sum(row.n_labels for row in token_rows(item)) for item in items]
    longest = [longest_in(item) for item in items]
    bins = _bins(longest, train, max_length)
    lengths = [sum(tokens[number] for number in one) for one in bins]
    plan = Plan.of(len(bins), train, seed, processes.count, lengths=lengths)
    looked = min(plan.steps, plan.steps_per_epoch * 20, STEPS_LOOKED_AT)
    steps = [
        [
            [number for place in batch for number in bins[place]]
            for batch in _passes(plan.step_batches(step), items, bins, train, padded, processes)
        ]
        for step in range(looked)
    ]
    batches = [batch for step in steps for batch in step]
    passes, busiest = _of_the_busiest(steps, tokens, processes)
    weights = [
        (
            sum(tokens[i] for i in batch),
            sum(labels[i] for i in batch),
            len(batch) * max(longest[i] for i in batch),
        )
        for batch in batches
    ]
    # The most tokens, labels, and columns where rows are padded; of equals, the heaviest else.
    ranks = ((0, 1, 2), (1, 0, 2), (2, 0, 1))
    most = set()
    for rank in ranks:
        ranked = [tuple(weight[kind] for kind in rank) for weight in weights]
        most.add(ranked.index(max(ranked)))
    heaviest = [batches[number] for number in sorted(most)]
    size = train.per_device_eval_batch_size
    chunks = [range(i, min(i + size, len(items))) for i in range(0, len(items), size)]
    whole = round(len(bins) / share)
    counts = Counts(
        rows=round(sum(len(token_rows(item)) for item in items) / share),
        tokens=round(sum(tokens) / share),
        trained_tokens=round(sum(labels) / share),
        longest=max(longest),
        items=whole,
        steps=Plan.of(whole, train, seed, processes.count).steps,
        sampled=share,
        passes_per_step=passes,
        busiest=busiest,
        padding=sum(columns_in([items[i] for i in batch]) for batch in batches)
        / max(sum(weight[0] for weight in weights), 1),
    )
    judged = [items[i] for i in max(chunks, key=lambda chunk: sum(tokens[i] for i in chunk))]
    return counts, Chosen([[items[i] for i in batch] for batch in heaviest], judged)


def _of_the_busiest(
    steps: Sequence[Sequence[Sequence[int]]], tokens: Sequence[int], processes: Processes
) -> tuple[float, float]:
    """Return the passes that a step waits for, and the share of all tokens that it waits for."""
    passes = most = 0
    for step in steps:
        shares = processes.shares(step)
        passes += max(map(len, shares))
        most += max(sum(tokens[i] for batch in share for i in batch) for share in shares)
    whole = sum(tokens[i] for step in steps for batch in step for i in batch)
    return passes / len(steps), most / whole if whole else 1.0


def _passes(
    batches: list[list[int]],
    items: Sequence[Any],
    bins: Sequence[Sequence[int]],
    train: TrainSettings,
    padded: bool,
    processes: Processes,
) -> list[list[int]]:
    """Return a step's batches of bins as the loop deals them to forward passes."""
    if train.per_device_train_tokens is None:
        return batches
    whole = [place for batch in batches for place in batch]
    there = [tuple(items[number] for number in bins[place]) for place in whole]
    budget = train.per_device_train_tokens
    dealt = passes_of(there, budget, padded=padded, processes=processes.count)
    return [[whole[number] for number in one] for one in dealt]


def _bins(
    lengths: Sequence[int], train: TrainSettings, max_length: int | None
) -> Sequence[Sequence[int]]:
    """Return the numbers of the items in each thing that a batch counts: an item, or a bin."""
    if not (train.packing and max_length):
        return [[number] for number in range(len(lengths))]
    return bins_of(lengths, max_length, train.packing_strategy)
