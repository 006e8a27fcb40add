"""Which batches a plan computes with: those of the most tokens, of the most labels and columns."""

from __future__ import annotations

import pytest

from llmft.api import Encoded, EncodedPair
from llmft.api.train_settings import TrainSettings
from llmft.planning.batch_choice import choose, longest_in, tokens_in
from llmft.training.step_plan import Plan


def row(tokens: int, labels: int = 1) -> Encoded:
    return Encoded((7,) * tokens, (-100,) * (tokens - labels) + (7,) * labels)


def chosen(items, max_length=None, share=1.0, seed=0, **train):
    return choose(items, TrainSettings(**train), seed, max_length, share)


def test_training_is_computed_with_the_batches_of_the_most_tokens_labels_and_columns():
    """Batches of two: (20, 20), (39, 2) and the labels' (11, 9); padding makes 78 of 39."""
    batches = [(row(20), row(20)), (row(37), row(2)), (row(11, 10), row(9, 8))]
    settings = TrainSettings(per_device_train_batch_size=2)
    order = [i for step in range(3) for b in Plan.of(6, settings, 4).step_batches(step) for i in b]
    items: list = [None] * 6
    for place, item in zip(order, [item for batch in batches for item in batch], strict=True):
        items[place] = item
    counts, found = chosen(items, seed=4, per_device_train_batch_size=2)
    assert [sorted(map(tokens_in, batch)) for batch in found.train] == [[20, 20], [2, 37], [9, 11]]
    assert (counts.rows, counts.items, counts.steps) == (6, 6, 3)
    assert (counts.tokens, counts.trained_tokens, counts.longest) == (99, 22, 37)


def test_of_equals_the_heaviest_else_is_taken():
    """Both batches have 30 tokens; one has more labels, one more columns when it is padded."""
    settings = TrainSettings(per_device_train_batch_size=2)
    order = [i for step in range(2) for b in Plan.of(4, settings, 1).step_batches(step) for i in b]
    items: list = [None] * 4
    for place, item in zip(order, [row(15, 9), row(15, 9), row(29), row(1)], strict=True):
        items[place] = item
    _, found = chosen(items, seed=1, per_device_train_batch_size=2)
    assert [sorted(map(tokens_in, batch)) for batch in found.train] == [[15, 15], [1, 29]]


def test_the_batch_of_an_evaluation_is_the_one_of_the_most_tokens():
    items = [row(n) for n in (3, 4, 9, 8, 2, 2, 5)]
    _, found = chosen(items, per_device_eval_batch_size=2)
    assert [tokens_in(item) for item in found.judged] == [9, 8]
    _, found = chosen(items[-3:], per_device_eval_batch_size=2)
    assert [tokens_in(item) for item in found.judged] == [5], "the last one may have fewer"


def test_numbers_of_a_sample_are_scaled_up():
    counts, _ = chosen([row(4, 2)] * 10, share=0.25, per_device_train_batch_size=8)
    assert (counts.rows, counts.items, counts.tokens, counts.trained_tokens) == (40, 40, 160, 80)
    assert (counts.steps, counts.longest, counts.sampled) == (5, 4, 0.25)


def test_packed_rows_are_counted_by_bins():
    items = [row(6), row(4), row(10), row(5)]
    train = TrainSettings(packing=True, max_length=10, per_device_train_batch_size=1)
    counts, found = choose(items, train, 0, 10, 1.0)
    assert (counts.rows, counts.items, counts.steps) == (4, 3, 3)
    assert max(sum(map(tokens_in, batch)) for batch in found.train) == 10


@pytest.mark.parametrize("size", [1, 3])
def test_items_are_found_again_in_what_an_alignment_makes_of_them(size):
    _, found = chosen([row(n) for n in (1, 5, 4, 2, 3, 6)], per_device_train_batch_size=size)
    made = [longest_in(item) for item in found.items]
    assert [len(batch) for batch in found.batches_of(made)] == [len(b) for b in found.train]
    assert found.batches_of(made) == [[longest_in(i) for i in batch] for batch in found.train]


def test_the_padding_of_an_epochs_passes_is_counted():
    """Of lengths 1 and 9 in turn a pass of two has 10 tokens or 18 columns, or is of one length."""
    items = [row(n) for n in (1, 9) * 64]
    random, _ = chosen(items, per_device_train_batch_size=2)
    plan = Plan.of(128, TrainSettings(per_device_train_batch_size=2), 0)
    longest = [max((1, 9)[n % 2] for n in b) for step in range(64) for b in plan.step_batches(step)]
    assert random.padding == pytest.approx(2 * sum(longest) / 640)
    grouped, _ = chosen(
        items, per_device_train_batch_size=2, train_sampling_strategy="group_by_length"
    )
    assert 1 <= grouped.padding < 1.06 < random.padding
    pair = EncodedPair(row(4), row(8), 2)
    assert chosen([pair] * 4)[0].padding == pytest.approx(16 / 12)
