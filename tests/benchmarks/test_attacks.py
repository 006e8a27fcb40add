"""The program of random attacks changes whatever YAML can say, and does not end of it."""

from __future__ import annotations

import runpy
from pathlib import Path
from random import Random

import pytest

ATTACKS = Path(__file__).parents[2] / "benchmarks" / "attacks"


@pytest.mark.parametrize("text", ["a: 2026-11-28", "2026-11-28: 1", "a: &b {c: *b}", "a: [1, x]"])
def test_any_yaml_is_changed(text, monkeypatch):
    monkeypatch.syspath_prepend(ATTACKS)
    mutants = runpy.run_path(str(ATTACKS / "mutants.py"))
    made = {mutants["change_yaml_file"](Random(seed), text.encode()) for seed in range(200)}
    assert len(made) > 10
