"""Rows of like length in a pass: each once an epoch, by the seed, and the gradient is the rows'."""

from __future__ import annotations

import itertools
import json
import random

import pytest
from safetensors.torch import load_file

from llmft.api.errors import RecipeError
from llmft.api.train_settings import TrainSettings
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.testing import measures
from llmft.training.length_groups import grouped_order
from llmft.training.step_plan import Plan

DRAW = random.Random(3)
LENGTHS = [DRAW.randint(1, 1000) for _ in range(1003)]


def plan(lengths=LENGTHS, processes=1, seed=1, **settings) -> Plan:
    asked = {"per_device_train_batch_size": 4, "train_sampling_strategy": "group_by_length"}
    made = TrainSettings(**asked | settings)
    return Plan.of(len(lengths), made, seed, processes, lengths)


def groups(order, size=4):
    return [order[i : i + size] for i in range(0, len(order), size)]


def padded(order, lengths=LENGTHS, size=4):
    return sum(max(lengths[n] for n in one) * len(one) for one in groups(order, size))


def test_an_order_has_each_item_once_and_nearly_no_padding():
    order = grouped_order(LENGTHS, 4, 0)
    assert sorted(order) == list(range(1003))
    plain = plan(train_sampling_strategy="random").order(0)
    assert padded(plain) > 1.5 * sum(
        LENGTHS
    )  # four uniform ones: the longest is 4/5 of all, not 1/2
    assert padded(order) < 1.03 * sum(LENGTHS)


def test_by_hand_a_quarter_of_the_items_is_sorted_together():
    """Of 32 items 8 are sorted at a time, whose lengths are drawn at random: in groups of two."""
    lengths = list(range(32))
    order = grouped_order(lengths, 2, 5)
    for one in groups(order, 2):
        assert one[0] < one[1]
    near = sum(abs(a - b) for a, b in groups(order, 2)) / 16
    assert 1 < near < 7  # sorted all together it would be 1; at random 11


def test_groups_come_in_random_order_and_not_from_short_to_long():
    longest = [max(LENGTHS[n] for n in one) for one in groups(grouped_order(LENGTHS, 4, 0))][:250]
    longer = sum(b > a for a, b in itertools.pairwise(longest)) / 249
    assert 0.4 < longer < 0.6  # sorted within stretches it would be nearly 1


def test_what_fills_no_group_is_left_by_chance_and_not_by_length():
    """The last three of 23 would always be long or short ones, if they were sorted with others."""
    lengths = list(range(23))
    last = [grouped_order(lengths, 4, seed)[20:] for seed in range(200)]
    mean = sum(map(sum, last)) / 600
    assert 10 < mean < 12
    assert len({n for some in last for n in some}) == 23


def test_the_order_follows_from_seed_epoch_and_lengths_alone():
    made = plan()
    assert made.order(1) == plan().order(1) == plan(processes=2, train_batch_size=16).order(1)
    assert made.order(0) == plan().order(0) != made.order(1)
    assert plan(seed=2).order(0) != made.order(0)
    other = plan(lengths=LENGTHS[::-1])
    assert other.order(0) != made.order(0)
    seen = made.order(0)[:4]
    assert len({tuple(sorted(one)) for one in groups(made.order(1))} & {tuple(sorted(seen))}) == 0


def test_processes_take_passes_of_like_length_in_turn():
    """A step's passes come longest first, so that two processes have nearly the same to do."""
    made = plan(processes=2, gradient_accumulation_steps=4)
    rows = [
        n for step in range(made.steps_per_epoch) for one in made.step_batches(step) for n in one
    ]
    assert sorted(rows) == list(range(1003))
    for step in range(10):
        lengths = [max(LENGTHS[n] for n in one) for one in made.step_batches(step)]
        assert len(lengths) == 8
        assert lengths == sorted(lengths, reverse=True)
        assert lengths[0] > 2 * lengths[-1]  # a step has short and long ones
        taken = made.order(0)[32 * step : 32 * step + 32]
        assert sorted(taken) == sorted(n for one in made.step_batches(step) for n in one)


def test_sequential_takes_the_rows_as_they_are_in_each_epoch():
    made = plan(lengths=[1] * 7, train_sampling_strategy="sequential")
    assert made.step_batches(0) == made.step_batches(2) == [[0, 1, 2, 3]]
    assert made.step_batches(1) == [[4, 5, 6]]


def test_lengths_that_are_missing_are_no_order():
    with pytest.raises(ValueError, match="0 lengths to group by"):
        Plan.of(8, TrainSettings(train_sampling_strategy="group_by_length"), 0).order(0)


@pytest.fixture
def trained(run, tmp_path, model_folder):
    """Return what trains a stage, and gives its adapter's weights and losses."""
    lines = [
        {"prompt": "say " + "a" * DRAW.randint(1, 30), "completion": " " + "b" * DRAW.randint(1, 9),
         "chosen": " yes" * DRAW.randint(1, 5), "rejected": " no" * DRAW.randint(1, 5),
         "label": bool(n % 2)}
        for n in range(48)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    datasets = {"dpo": "preference", "kto": "unpaired"}

    def trained(alignment="sft", attention="auto", **train):
        stage = {
            "name": "s", "adapter": {"method": "lora", "r": 4}, "alignment": {"method": alignment},
            "data": {"method": datasets.get(alignment, "jsonl"),
                     "path": str(tmp_path / "rows.jsonl")},
            "train": {"max_steps": 3, "learning_rate": 0.5, "optim": "sgd", "logging_steps": 1,
                      "train_batch_size": 48, "per_device_train_batch_size": 4, **train},
        }  # fmt: skip
        with measures.one_thread():
            source = {"path": str(model_folder), "attn_implementation": attention}
            found = run(stage, model=source)
        folder = found.folder / "stages" / "s"
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        losses = [one["loss"] for one in lines if one["phase"] == "train"]
        (weights,) = (folder / "adapter").glob("adapter_model.safetensors")
        return load_file(weights), losses

    return trained


BY_LENGTH = {"train_sampling_strategy": "group_by_length"}


@pytest.mark.parametrize(
    ("alignment", "attention", "more"),
    [
        ("sft", "auto", {}), ("sft", "eager", {}), ("dpo", "auto", {}),
        ("sft", "eager", {"per_device_train_tokens": 400}),
    ],
)  # fmt: skip
def test_a_step_of_all_rows_has_the_gradient_of_any_other_order(
    trained, alignment, attention, more
):
    plain, losses = trained(alignment, attention)
    grouped, again = trained(alignment, attention, **BY_LENGTH, **more)
    assert again == pytest.approx(losses, rel=1e-5)
    for name, weight in plain.items():
        assert grouped[name].allclose(weight, rtol=1e-3, atol=2e-5), name


def test_labelled_answers_and_steps_that_are_left_out_can_be_grouped(trained):
    _, losses = trained("kto", train_batch_size=8, **BY_LENGTH)
    assert len(losses) == 3
    more = {"drop_last": True, "train_batch_size": 20, "max_steps": 4}
    _, losses = trained("sft", **more, **BY_LENGTH)
    assert len(losses) == 4


def recipe(tmp_path, alignment, train, data="{method: jsonl, path: rows.jsonl}"):
    path = tmp_path / "r.yaml"
    path.write_text(
        "recipe: 1\nname: r\nmodel: {path: 'embedded:model'}\nstages:\n  - name: s\n"
        f"    adapter: {{method: lora}}\n    alignment: {alignment}\n"
        f"    data: {data}\n    train: {{max_steps: 1, {train}}}\n"
    )
    return load_recipe(path, Registry.discover())


GROUPED = "train_sampling_strategy: group_by_length"


@pytest.mark.parametrize(
    "alignment",
    ["{method: ppo, reward: {method: length, target: 4}}",
     "{method: grpo, rewards: [{method: length, target: 4}]}",
     "{method: gkd, teacher: {path: 'embedded:model'}}"],
)  # fmt: skip
def test_a_method_that_samples_its_rows_refuses_it(alignment, tmp_path):
    with pytest.raises(RecipeError, match="samples its rows during training"):
        recipe(tmp_path, alignment, GROUPED)


def test_packed_and_streamed_rows_and_the_old_name_are_refused_with_a_fix(tmp_path):
    sft = "{method: sft}"
    with pytest.raises(RecipeError, match="so that they are of like length already"):
        recipe(tmp_path, sft, f"{GROUPED}, packing: true, max_length: 64")
    streamed = "{method: jsonl, path: rows.jsonl, streaming: true}"
    with pytest.raises(RecipeError, match="streamed rows are never all there"):
        recipe(tmp_path, sft, GROUPED, streamed)
    with pytest.raises(RecipeError, match="write train_sampling_strategy: group_by_length"):
        recipe(tmp_path, sft, "group_by_length: true")
