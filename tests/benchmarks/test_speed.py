"""The speed harness's own arithmetic: which results a page keeps, and who takes part."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

SPEED = Path(__file__).parents[2] / "benchmarks" / "speed"


@pytest.fixture(scope="module", autouse=True)
def harness():
    """Import the harness's modules as its programs do, and forget them afterwards."""
    sys.path.insert(0, str(SPEED))
    known = set(sys.modules)
    yield
    sys.path.remove(str(SPEED))
    for name in set(sys.modules) - known:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == SPEED:
            del sys.modules[name]


def result(task, stack="here", cpu=1.0, threads=1, **peers):
    run = {"cpu": cpu, "wall": cpu, "ready": 1.0, "peak": 1.0, "losses": [1.0]}
    return {"task": task, "stack": stack, "threads": threads, "peers": peers, "steps": 1,
            "rounds": 1, "tokens": 10, "taken": {"llmft": [run]}}  # fmt: skip


def test_a_task_measured_again_takes_the_place_of_its_old_line_only():
    from records import merge

    old = [result("sft"), result("dpo", cpu=1.0)]
    merged, gone = merge(old, [result("dpo", cpu=2.0)], ["sft", "dpo"])
    assert [each["task"] for each in merged] == ["sft", "dpo"]
    assert merged[1]["taken"]["llmft"][0]["cpu"] == 2.0
    assert gone == []


def test_results_are_in_the_order_of_the_tasks():
    from records import merge

    merged, _ = merge([result("dpo")], [result("sft")], ["sft", "dpo"])
    assert [each["task"] for each in merged] == ["sft", "dpo"]


@pytest.mark.parametrize(
    "other",
    [{"stack": "elsewhere"}, {"threads": 2}, {"litgpt": "2"}],
    ids=["machine", "threads", "peer"],
)
def test_a_line_of_another_machine_or_version_is_dropped(other):
    from records import merge

    merged, gone = merge(
        [result("sft", **{"litgpt": "1", **other})], [result("dpo", litgpt="1")], ["sft", "dpo"]
    )
    assert [each["task"] for each in merged] == ["dpo"]
    assert gone == ["sft"]


def test_what_is_dropped_is_told_and_the_file_holds_the_rest(tmp_path, capsys):
    from records import keep

    path = tmp_path / "results.jsonl"
    keep(path, [result("sft", stack="elsewhere")], ["sft", "dpo"])
    keep(path, [result("dpo")], ["sft", "dpo"])
    assert "dropped: sft" in capsys.readouterr().out
    assert path.read_text("utf-8").count("\n") == 1


def test_every_peer_that_is_absent_is_told_with_a_reason(tmp_path, monkeypatch):
    from peers import FOLDER, PEERS, left_out, present

    monkeypatch.delenv(FOLDER, raising=False)
    assert [line.partition(" is left out: ")[0] for line in left_out()] == [p.name for p in PEERS]
    assert all(line.partition(" is left out: ")[2] for line in left_out())
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert list(present()) == []
    assert any("has no environment 'litgpt'" in line for line in left_out())


def test_a_peer_takes_part_where_its_environment_has_its_package(tmp_path, monkeypatch):
    from peers import FOLDER, present, versions

    python = tmp_path / "litgpt" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert list(present()) == []
    info = tmp_path / "litgpt" / "lib" / "python3.11" / "site-packages" / "litgpt-0.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: litgpt\nVersion: 0.5\n")
    assert versions() == {"litgpt": "0.5"}


def test_every_peer_has_the_program_that_runs_it():
    from peers import PEERS

    assert [peer.name for peer in PEERS if not peer.absent and not peer.child.exists()] == []


def test_a_peer_that_trained_something_else_is_not_in_the_table():
    from page import _tasks

    told = result("sft", litgpt="1")
    run = told["taken"]["llmft"][0]
    told["taken"] |= {"trl": [run], "litgpt": [{**run, "losses": [1.1]}]}
    names = [line.split("|")[4].strip() for line in _tasks([told]) if line.startswith("| sft")]
    assert names == ["llmft", "trl"]


@pytest.mark.extended
@pytest.mark.parametrize("alignment", ["sft", "dpo"])
def test_llmft_and_trl_train_the_same_thing(tmp_path, alignment):
    from contestants import CONTESTANTS, run_once
    from model_folder import write_model
    from table import apart
    from workload import Shape, Task, write_task

    tiny = Shape(hidden=32, intermediate=64, layers=1, heads=4, kv_heads=2, vocabulary=300)
    write_task(tmp_path, Task("tiny", alignment, steps=2, shape=tiny))
    write_model(tmp_path)
    ours, theirs = (
        run_once(next(c for c in CONTESTANTS if c.name == name), tmp_path, 1)
        for name in ("llmft", "trl")
    )
    assert len(ours["losses"]) == 2
    assert apart(ours["losses"], theirs["losses"]) < 1e-4
    assert 0 < ours["cpu"] < ours["wall"] * 2


# Batches of (7, 4) and (6, 3) tokens, learnt ones second; widths 8, 4 (keys), 16; 10 words.
ATTENTION, KEYS, WIDE, HEAD = 2 * 8 * 8, 2 * 8 * 4, 3 * 8 * 16, 8 * 10
LAYER = ATTENTION + KEYS + WIDE
LAST = 13 * KEYS + 7 * (ATTENTION + WIDE)
FIRST_BACK = LAYER - ATTENTION // 2 - KEYS


@pytest.mark.parametrize(("alignment", "products"), [
    ("sft", 13 * LAYER + 2 * (LAST + 7 * HEAD) + 13 * FIRST_BACK),
    ("dpo", 2 * 13 * LAYER + 3 * (LAST + 7 * HEAD) + 13 * FIRST_BACK),
    ("reward", 13 * LAYER + 2 * LAST + 13 * FIRST_BACK),
    ("orpo", 13 * (LAYER + 2 * (LAYER + HEAD) + FIRST_BACK)),
])  # fmt: skip
def test_the_products_alone_are_those_counted_by_hand(tmp_path, alignment, products):
    import products_child
    from torch.utils.flop_counter import FlopCounterMode
    from workload import Shape, Task, write_task

    shape = Shape(hidden=8, intermediate=16, layers=2, heads=2, kv_heads=1, vocabulary=10)
    write_task(tmp_path, Task("tiny", alignment, steps=1, batch=1, accumulation=2, shape=shape))
    answers = ("completion",) if alignment == "sft" else ("chosen", "rejected")
    texts = {"completion": ["abc", "ab"], "chosen": ["a", "a"], "rejected": ["a", ""]}
    rows = [
        {"prompt": "abc"} | {name: texts[name][number] for name in answers} for number in range(2)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with FlopCounterMode(display=False) as counter:
        products_child.main(tmp_path, tmp_path / "out.json")
    assert counter.get_total_flops() == 2 * products
    assert json.loads((tmp_path / "out.json").read_text())["cpu"] > 0


def test_the_page_has_the_products_share_where_it_was_measured():
    from page import _tasks

    older, newer = result("sft"), result("dpo", cpu=4.0) | {"products": [1.0, 3.0, 2.5]}
    assert "products" not in _tasks([older])[0]
    head, _, first, second, *_ = _tasks([older, newer])
    assert head.endswith("| losses apart | products alone |")
    assert first.endswith("|  |")
    assert second.endswith("| 62% |")
