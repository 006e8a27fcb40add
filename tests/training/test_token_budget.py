"""Passes of so many tokens: every row once, none over the budget, and the very same gradient."""

from __future__ import annotations

import json
import random

import pytest
from safetensors.torch import load_file

from llmft.api import Encoded, EncodedPair
from llmft.api.errors import RecipeError
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.testing import measures
from llmft.training.token_budget import passes_of

SIMPO = {"method": "cpo", "loss_type": "simpo", "cpo_alpha": 0}


def row(length: int) -> Encoded:
    return Encoded((1,) * length, (1,) * length)


def test_every_row_is_in_one_pass_and_passes_are_few():
    draw = random.Random(0)
    rows = [row(draw.randint(1, 90)) for _ in range(200)]
    passes = passes_of(rows, 100, padded=False)
    assert sorted(n for one in passes for n in one) == list(range(200))
    tokens = [sum(len(rows[n].input_ids) for n in one) for one in passes]
    assert max(tokens) <= 100
    assert len(passes) <= 11 / 9 * -(-sum(tokens) // 100) + 1
    assert passes == passes_of(rows, 100, padded=False)


def test_padding_counts_where_there_is_some_and_a_long_row_is_alone():
    rows = [row(10), row(2), row(2), row(2), row(50)]
    assert passes_of(rows, 20, padded=False) == [[4], [0, 1, 2, 3]]
    assert passes_of(rows, 20, padded=True) == [[4], [0, 1], [2, 3]]


def test_both_answers_of_a_pair_and_all_rows_of_a_bin_count():
    pair = EncodedPair(row(4), row(8), 2)
    assert passes_of([pair, pair], 24, padded=False) == [[0, 1]]
    assert passes_of([pair, pair], 23, padded=False) == [[0], [1]]
    assert passes_of([pair, pair], 31, padded=True) == [[0], [1]]
    assert passes_of([row(12), (row(5), row(8))], 24, padded=False) == [[1], [0]]  # 13 of 12
    assert passes_of([row(12), (row(5), row(8))], 36, padded=True) == [[0, 1]]


@pytest.mark.parametrize("padded", [False, True])
def test_several_processes_get_even_passes(padded):
    draw = random.Random(2)
    rows = [row(draw.randint(1, 90)) for _ in range(61)]
    few = passes_of(rows, 300, padded=padded)
    for count in (2, 3, 8):
        passes = passes_of(rows, 300, padded=padded, processes=count)
        assert sorted(n for one in passes for n in one) == list(range(61))
        assert len(few) <= len(passes) <= -(-len(few) // count) * count
        assert padded or len(passes) % count == 0
        lengths = [[len(rows[n].input_ids) for n in one] for one in passes]
        sizes = [len(one) * max(one) if padded else sum(one) for one in lengths]
        assert max(sizes) <= 300
        assert max(sizes) <= 1.3 * sum(sizes) / len(sizes)
    assert len(passes_of(rows[:3], 300, padded=padded, processes=8)) == 3  # no row for the others
    # Where no even passes hold all within the budget, they stay as they are.
    tight = [row(n) for n in (6, 4, 4, 3, 3)]
    assert passes_of(tight, 10, padded=False, processes=2) == [[0, 1], [2, 3, 4]]


@pytest.fixture
def trained(run, tmp_path):
    """Return what trains a stage, and gives its adapter's weights and the rows of its passes."""
    draw = random.Random(1)
    lines = [
        {"prompt": "say " + "a" * draw.randint(1, 30), "completion": " " + "b" * draw.randint(1, 9),
         "chosen": " yes" * draw.randint(1, 5), "rejected": " no" * draw.randint(1, 5)}
        for _ in range(40)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def trained(alignment="sft", adapter="lora", streaming=False, **train):
        pairs = alignment != "sft"
        data = {"method": "preference" if pairs else "jsonl", "streaming": streaming}
        soft = {"num_virtual_tokens": 3} if adapter == "prefix" else {"r": 4}
        objective = SIMPO if alignment == "simpo" else {"method": alignment}
        stage = {
            "name": "s", "adapter": {"method": adapter, **soft}, "alignment": objective,
            "data": {**data, "path": str(tmp_path / "rows.jsonl")},
            "train": {"max_steps": 4, "learning_rate": 0.02, "logging_steps": 1,
                      "train_batch_size": 12, "per_device_train_batch_size": 2, **train},
        }  # fmt: skip
        with measures.one_thread():
            found = run(stage)
        folder = found.folder / "stages" / "s"
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        losses = [one["loss"] for one in lines if one["phase"] == "train"]
        (weights,) = (folder / "adapter").glob("adapter_model.safetensors")
        return load_file(weights), losses

    return trained


@pytest.mark.parametrize(
    ("alignment", "adapter", "budget"),
    [
        ("sft", "lora", 150),
        ("sft", "prefix", 300),
        ("dpo", "lora", 4000),
        ("sft", "lora", 1),
        ("orpo", "lora", 100),
        ("simpo", "lora", 100),
        ("reward", "lora", 100),
    ],
)
def test_a_step_has_the_same_rows_and_so_the_same_gradient(trained, alignment, adapter, budget):
    plain, losses = trained(alignment, adapter)
    dealt, again = trained(alignment, adapter, per_device_train_tokens=budget)
    assert again == pytest.approx(losses, rel=1e-5)
    for name, weight in plain.items():
        assert dealt[name].allclose(weight, rtol=1e-3, atol=2e-5), name


def test_streamed_rows_are_dealt_too(trained):
    passes = []
    from llmft.training import updates

    plain = updates.passes_of

    def seen(items, budget, *, padded, processes):
        passes.append(plain(items, budget, padded=padded, processes=processes))
        return passes[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(updates, "passes_of", seen)
        dealt, losses = trained(streaming=True, per_device_train_tokens=100)
    assert [sum(map(len, one)) for one in passes] == [12] * 4
    assert all(len(one) < 6 for one in passes)
    plain, again = trained(streaming=True)
    assert again == pytest.approx(losses, rel=1e-5)
    assert all(dealt[name].allclose(weight, rtol=1e-3, atol=2e-5) for name, weight in plain.items())


@pytest.mark.parametrize(
    "alignment",
    ["{method: kto}", "{method: cpo, loss_type: simpo}", "{method: dpo, loss_type: [sigmoid, sft]}",
     "{method: dpo, loss_type: [aot]}", "{method: ppo, reward: {method: length, target: 4}}",
     "{method: grpo, rewards: [{method: length, target: 4}]}",
     "{method: gkd, teacher: {path: 'embedded:model'}}"],
)  # fmt: skip
def test_a_method_whose_pass_matters_refuses_it(alignment, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "recipe: 1\nname: r\nmodel: {path: 'embedded:model'}\nstages:\n  - name: s\n"
        f"    adapter: {{method: lora}}\n    alignment: {alignment}\n"
        "    data: {method: unpaired, path: rows.jsonl}\n"
        "    train: {max_steps: 1, per_device_train_tokens: 100}\n"
    )
    with pytest.raises(RecipeError, match="needs as many rows in a forward pass"):
        load_recipe(path, Registry.discover())
