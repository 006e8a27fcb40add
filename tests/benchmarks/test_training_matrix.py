"""The matrix of training: a sample of it is right, it covers pairs, and it sees what is wrong."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import astuple
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = ROOT / "benchmarks" / "training_matrix"
# Plain; Conv1D and dropouts of its own; a cap and a window; fused experts; state beside attention;
# sinks; positions of its own; heads of another kind (MLA).
SAMPLE = ("llama", "gpt2", "gemma2", "mixtral", "granitemoehybrid", "gpt_oss", "roberta",
          "deepseek_v3")  # fmt: skip


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    sys.path.insert(0, str(HERE))
    try:
        from by_llmft import Bench

        return Bench(tmp_path_factory.mktemp("bench"))
    finally:
        sys.path.remove(str(HERE))


@pytest.fixture
def program():
    spec = importlib.util.spec_from_file_location("run_training_matrix", HERE / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pairs(cells):
    return {pair for cell in cells for pair in combinations(enumerate(astuple(cell)), 2)}


@pytest.mark.parametrize("count", [8, 11, 175])
def test_the_sample_shows_every_pair_of_settings(count):
    from training_cells import covering, in_order, of_kind

    kinds = [f"kind{number}" for number in range(count)]
    every = [cell for kind in kinds for cell in of_kind(kind)]
    assert len(every) == 64 * count
    assert len(covering(kinds)) == 4 * count
    assert pairs(covering(kinds)) == pairs(every)
    whole = list(in_order(kinds))
    assert whole[: 4 * count] == covering(kinds)
    assert sorted(map(str, whole)) == sorted(map(str, every))


def test_every_value_of_every_axis_is_right_on_a_llama(bench):
    from by_llmft import Outcome
    from training_cells import covering

    assert {bench.run(cell) for cell in covering(["llama"])} == {Outcome("works")}


@pytest.mark.extended
def test_a_sample_that_covers_every_pair_of_settings_is_right(bench):
    from training_cells import covering

    for cell in covering(SAMPLE):
        outcome = bench.run(cell)
        assert outcome.state in ("works", "works padded", "refused"), (cell, outcome)
        assert bool(outcome.reason) == (outcome.state == "refused")


def test_what_is_computed_otherwise_is_seen(bench, monkeypatch):
    """The referee leaves out each answer's end: a loss that differs, in training and before."""
    import by_transformers
    from training_cells import Cell

    monkeypatch.setattr(by_transformers, "_answer", lambda row, which: list(row[which].encode()))
    outcome = bench.run(Cell("llama", "prompt", "sft", dropout=False, padding_free=True))
    assert outcome.state == "wrong"
    assert "the loss of step 1 is" in outcome.reason


def test_a_refusal_after_weights_were_loaded_is_not_taken_for_one(bench, monkeypatch):
    from training_cells import Cell

    from llmft.api.errors import StageError
    from llmft.engine.stage import StageRunner

    def refuse(runner, *given):
        raise StageError("E300", "too late")

    cell = Cell("llama", "prompt", "sft", dropout=False, padding_free=True)
    monkeypatch.setattr(StageRunner, "_keep_preview", refuse)
    outcome = bench.run(cell)
    assert (outcome.state, outcome.reason) == ("late", "too late")


@pytest.mark.extended
def test_it_goes_on_after_a_stop_and_each_part_has_types_of_its_own(program, tmp_path):
    results = tmp_path / "results.jsonl"
    line = {"kind": "llama", "adapter": "lora", "alignment": "sft", "dropout": False,
            "padding_free": True, "state": "failed", "reason": "x"}  # fmt: skip
    results.write_text(json.dumps(line) + "\n" + json.dumps({**line, "state": "works"}) + "\n")
    assert [found["state"] for found in program.read(results)] == ["works"]
    asked = type("Asked", (), {"covering": True, "only": None, "part": "1/3"})
    parts = []
    for number in (1, 2, 3):
        asked.part = f"{number}/3"
        parts.append({cell.kind for cell in program.cells(asked)})
    assert sum(map(len, parts)) == len(set.union(*parts)) > 150
    asked.only, asked.part = ["roberta", "llama"], "1/1"
    assert [cell.kind for cell in program.cells(asked)] == ["roberta"] * 4 + ["llama"] * 4


def test_the_page_has_every_type_and_the_counts_of_its_lines():
    from matrix_page import RIGHT, page
    from tiny_folders import model_types

    lines = (ROOT / "docs" / "training-matrix.jsonl").read_text("utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    told = (ROOT / "docs" / "training-matrix.md").read_text("utf-8")
    assert told == page(found)
    assert all(f"| `{kind}` |" in told for kind in model_types())
    assert {line["state"] for line in found} <= {*RIGHT, "not tried"}
    assert all(line["reason"] for line in found if line["state"] == "refused")


@pytest.mark.parametrize(
    ("kind", "dropout"), [("cwm", False), ("diffllama", True), ("git", False), ("emu3", True)]
)
def test_a_tiny_model_is_made_and_loads_as_its_type(tmp_path, kind, dropout):
    from tiny_folders import BASE_DROPOUT, tiny_folder
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tiny_folder(tmp_path, kind, dropout=dropout)
    assert AutoConfig.from_pretrained(folder).model_type == kind
    config = AutoModelForCausalLM.from_pretrained(folder).config
    assert (config.hidden_size, config.eos_token_id) == (64, 256)
    if kind == "emu3":
        assert config.attention_dropout == BASE_DROPOUT
    if kind == "diffllama":  # which takes none of attention's weights
        assert config.attention_dropout == 0.0


def test_masks_are_those_of_features_but_for_the_weights_of_heads():
    import torch
    import torch.nn.functional as F
    from same_masks import same_masks

    with same_masks():
        of_rows = F.dropout(torch.ones(2, 3, 16), 0.5)
        latent = F.dropout(torch.ones(2, 1, 3, 16), 0.5)  # as MiniCPM3's keys before their heads
        weights = F.dropout(torch.ones(2, 4, 3, 3), 0.5)
    assert set(of_rows.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(latent[:, 0], of_rows)
    assert bool((weights == 1).all())
