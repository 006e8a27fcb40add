"""The matrix in the docs is what happens: a sample is run, and `validate` answers as it did."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path

import pytest

from llmft.api.errors import LlmftError
from llmft.engine.preflight import preflight
from llmft.modeling.base_model import BaseModel
from llmft.recipes.load import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def matrix():
    spec = importlib.util.spec_from_file_location("matrix", ROOT / "benchmarks" / "matrix.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["matrix"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench(matrix, tmp_path_factory):
    return matrix.Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def recorded(matrix):
    lines = (ROOT / "docs" / "matrix.jsonl").read_text("utf-8").splitlines()
    found = {}
    for line in lines:
        fields = json.loads(line)
        outcome = matrix.Outcome(fields.pop("state"), fields.pop("reason"))
        found[matrix.Cell(**fields)] = outcome
    return found


def test_every_combination_was_run_and_none_failed(matrix, recorded):
    assert list(recorded) == matrix.cells()
    assert {outcome.state for outcome in recorded.values()} == {"works", "refused"}
    assert all(o.reason for o in recorded.values() if o.state == "refused")


@pytest.mark.extended
def test_a_sample_that_covers_every_pair_of_settings_comes_out_as_recorded(matrix, bench, recorded):
    for cell in matrix.covering(seed=1, most=40):
        assert bench.run(cell) == recorded[cell], cell


@pytest.mark.extended
def test_validate_answers_as_the_matrix_does(bench, recorded):
    """What was refused is refused from declared capabilities alone, without running anything."""
    chosen = random.Random(3).sample(sorted(recorded, key=str), 120)
    for cell in chosen:
        faults = []
        try:
            job = load_recipe(bench.recipe(cell), bench.registry)
            faults = preflight(job, BaseModel(job.recipe.model))
        except LlmftError as error:
            faults = error.faults
        assert bool(faults) == (recorded[cell].state == "refused"), cell


@pytest.mark.slow
def test_the_whole_matrix_comes_out_as_recorded(bench, recorded):
    for cell, outcome in recorded.items():
        assert bench.run(cell) == outcome, cell
