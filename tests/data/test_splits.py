"""Parts of splits: the rows that `datasets` would take, and what is no split is said so."""

from __future__ import annotations

import json

import pytest
from datasets import ReadInstruction

from llmft.api.errors import DataError, LlmftError
from llmft.api.splits import split_parts
from llmft.data import tables
from llmft.data.splits import records_of_parts
from llmft.data.tables import read_records
from llmft.engine.preflight import preflight
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry

SPLITS = [
    "train", "train[:20%]", "train[20%:]", "train[100:200]", "train[-5:]", "train[:-5]",
    "train[10:]", "train[33%:66%]", "train[-10%:]", "train[:150%]", "train+test",
    "test + train[:3]",
    "train[:5%](pct1_dropremainder)", "train[0:50%]", "train[1_0:20]", "train[50:20]", "train[:]",
    "train[:7%]+test[-1:]+train[7%:9%]", "train[7%:9%](closest)", "train[200:300]",
]  # fmt: skip


@pytest.mark.parametrize("count", [7, 150, 1003])
@pytest.mark.parametrize("split", SPLITS)
def test_a_part_is_the_rows_that_datasets_takes(split, count):
    counts = {"train": count, "test": 4}
    read = {name: [(f"{name}:{n}", {}) for n in range(rows)] for name, rows in counts.items()}
    try:
        theirs = ReadInstruction.from_spec(split.replace(" ", "")).to_absolute(counts)
    except (ValueError, AssertionError) as error:
        if "less than 100" in str(error):
            pytest.skip("datasets refuses hundredths of fewer than 100 rows; here it has no rows")
        with pytest.raises(ValueError, match="percentage"):
            split_parts(split)
        return
    ours = [origin for origin, _ in records_of_parts(split, read.__getitem__)]
    assert ours == [
        f"{one.splitname}:{n}" for one in theirs for n in range(one.from_, max(one.to, one.from_))
    ]


@pytest.mark.parametrize(("split", "fix"), [
    ("train[20%]", "write train[:20%]"),
    ("train[:20", "write train[:20]"),
    ("train[:20 %]", "write train[:20%]"),
    ("train[:0.2]", "write train[:20%]"),
    ("train[0.1:0.5]", "write train[10%:50%]"),
    ("train[:12.4%]", "write train[:12%]"),
    ("train[a:b]", "write such as train[:20%], train[100:200] or train+validation"),
    ("train:20%", "write such as train[:20%], train[100:200] or train+validation"),
    ("train+", "write such as train[:20%], train[100:200] or train+validation"),
    ("train[:120%]", "correct it"),
    ("train[10:50%]", "write % at both"),
    ("train[:5%](up)", "drop it"),
    ("train[:5](closest)", "drop it"),
])  # fmt: skip
def test_what_is_no_split_is_refused_with_what_was_meant(split, fix):
    with pytest.raises(ValueError, match="train") as caught:
        split_parts(split)
    assert str(caught.value).partition("; ")[2] == fix


def test_a_name_stays_a_name():
    assert [part.name for part in split_parts("train_sft-v1.2")] == ["train_sft-v1.2"]


@pytest.fixture
def folder(tmp_path):
    for name, count in (("train", 10), ("validation", 3)):
        rows = [{"prompt": f"{name} {n}", "completion": "c"} for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


def test_parts_are_read_of_files_and_name_their_own_lines(folder):
    found = [origin for origin, _ in read_records(str(folder), "train[80%:]+validation[:1]")]
    assert found == [f"{folder}/{name}" for name in
                     ("train.jsonl:9", "train.jsonl:10", "validation.jsonl:1")]  # fmt: skip
    one = [o for o, _ in read_records(str(folder / "train.jsonl"), "train[2:4]")]
    assert one == [f"{folder}/train.jsonl:3", f"{folder}/train.jsonl:4"]


def test_of_the_hub_datasets_takes_the_part_itself(monkeypatch):
    asked = []
    monkeypatch.setattr(tables, "hub_records", lambda *of: asked.append(of) or iter(()))
    list(read_records("org/name", "train[:20%]"))
    assert asked == [("org/name", None, "train[:20%]", None)]


def test_an_unknown_split_names_those_that_are_there(folder):
    with pytest.raises(DataError, match=r"it has: train, validation") as caught:
        list(read_records(str(folder), "validatoin[:1]"))
    assert caught.value.faults[0].code == "E109"
    assert caught.value.faults[0].fix == "did you mean 'validation'?"


def faults(folder, data="train", evaluate="validation"):
    path = folder / "recipe.yaml"
    path.write_text(
        "recipe: 1\nname: s\nmodel: {path: embedded:model}\nstages:\n  - name: s\n"
        f"    adapter: {{method: lora}}\n    alignment: {{method: sft}}\n    data:\n"
        f"      method: jsonl\n      path: {folder}\n      split: '{data}'\n"
        f"    evaluate:\n      split: '{evaluate}'\n"
    )
    try:
        found = preflight(load_recipe(path, Registry.discover()), None)
    except LlmftError as error:
        found = error.faults
    return [
        (fault.code, fault.place.line, fault.path.removeprefix("stages[0].")) for fault in found
    ]


@pytest.mark.parametrize(("settings", "told"), [
    ({"data": "train[:80%]", "evaluate": "train[80%:]"}, []),
    ({"data": "train[20%]"}, [("E040", 11, "data.split")]),
    ({"evaluate": "train[20%]"}, [("E040", 13, "evaluate.split")]),
    ({"data": "trian"}, [("E109", 11, "data.split")]),
    ({"evaluate": "test"}, [("E109", 13, "evaluate.split")]),
    ({"data": "train[50:]"}, [("E103", 10, "data.path")]),
])  # fmt: skip
def test_faults_are_at_the_split(folder, settings, told):
    assert faults(folder, **settings) == told


def test_rows_of_a_stage_can_be_a_part_too(tmp_path):
    from llmft_datasets.from_stage import FromStage

    (tmp_path / "rows.jsonl").write_text("{}\n" * 10)
    dataset = FromStage(FromStage.Config(method="from_stage", stage="rank"))
    dataset.upstream = {"stage": tmp_path}
    assert len(list(dataset.records("train[90%:]"))) == 1
    with pytest.raises(DataError, match="no split 'test'"):
        list(dataset.records("test[:1]"))
