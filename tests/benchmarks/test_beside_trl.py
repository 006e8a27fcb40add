"""The tables beside TRL's PPO and GRPO are made of the figures that were noted."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(params=["ppo_trl", "grpo_trl"])
def harness(request, monkeypatch):
    """A harness's folder, whose modules are importable as its program has it."""
    known = set(sys.modules)
    for name in ("ppo_trl", request.param):  # the last one is looked in first
        monkeypatch.syspath_prepend(str(BENCHMARKS / name))
    yield request.param
    for name in set(sys.modules) - known:
        if BENCHMARKS in Path(getattr(sys.modules[name], "__file__", None) or "/").parents:
            del sys.modules[name]


def test_the_page_has_the_figures(harness):
    lines = (BENCHMARKS / harness / "results.jsonl").read_text("utf-8").splitlines()
    results = [json.loads(line) for line in lines]
    if harness == "ppo_trl":
        made = "\n".join("| " + " | ".join(row) + " |" for result in results
                         for row in import_module("verdict").cells(result))  # fmt: skip
    else:
        made = import_module("run").table(results)
    page = (BENCHMARKS.parent / "docs" / f"{harness.removesuffix('_trl')}.md").read_text("utf-8")
    assert made in page


@pytest.mark.parametrize("harness", ["grpo_trl"], indirect=True)
def test_ratios_are_those_of_the_same_seed(harness):
    from run import TASKS, rows_of

    def figures(cpu: float, reward: float) -> dict:
        return {"cpu": cpu, "wall": cpu, "peak": 2e6, "steps": [{"reward": reward}] * 2}

    task = {**TASKS["trivia"].__dict__, "rewards": []}
    taken = {
        "llmft": [figures(10.0, 0.2), figures(20.0, 0.4)],
        "trl": [figures(30.0, 0.1), figures(40.0, 0.3)],
    }
    ours, theirs = rows_of({"task": task, "taken": taken})
    assert ours[2:5] == ["15.0", "1.00", "1.00 to 1.00"]
    assert theirs[2:5] == ["35.0", "2.50", "2.00 to 3.00"]
    assert theirs[8:10] == ["0.200", "0.100 to 0.300"]
