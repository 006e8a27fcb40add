"""A process that forks runs, tiny rows and a tiny model, and the run that nothing stops."""

from __future__ import annotations

import importlib
import json
from functools import partial
from pathlib import Path

import pytest

from tests.end_to_end.checkpoints.harness import HERE, Ended, Server, run_in_child, tiny_recipe


@pytest.fixture(scope="session")
def canaries():
    """The benchmarks' module that plants secrets and looks for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        patch.syspath_prepend(HERE.parents[2] / "benchmarks" / "faults")
        importlib.import_module("harness")  # it imports this later
        return importlib.import_module("canaries")


@pytest.fixture(scope="session")
def server(canaries):
    made = Server(**canaries.PLANTED)
    yield made
    made.close()


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [{"prompt": f"say {n}:", "completion": f" {n % 7}"} for n in range(18)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def recipe(model_folder, rows_file) -> dict:
    """A recipe as plain data, for a test to change."""
    return tiny_recipe(model_folder, rows_file)


@pytest.fixture
def go(server, tmp_path):
    """Run a recipe in a child: a new run in `place`, or with `resume` the run that is there."""
    return partial(run_in_child, server, tmp_path)


@pytest.fixture(scope="session")
def whole(server, tmp_path_factory, model_folder, rows_file) -> Ended:
    """The run that nothing stops."""
    home = tmp_path_factory.mktemp("whole")
    data = tiny_recipe(model_folder, rows_file)
    done = run_in_child(server, home, data, "whole", fault={"kind": "count"})
    assert done.code == 0, done.text
    return done
