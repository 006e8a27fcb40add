"""A plan's memory on a GPU, held to what an H100 and an H200 took for 8B's shape."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import plan_memory

    yield plan_memory
    for name in ("plan_memory", "plan_recipes"):
        sys.modules.pop(name, None)


@pytest.mark.extended
@pytest.mark.parametrize("number", range(6))
def test_a_plan_has_the_peak_that_a_gpu_had(program, tmp_path, number):
    case = program.CASES[number]
    peak = program.as_then(case, program.model("llama", tmp_path / "model"), tmp_path / "rows")
    tensors, reserved = program.recorded(case)
    assert peak.tensors / 1e9 == pytest.approx(tensors, rel=0.006)
    assert peak.reserved / 1e9 == pytest.approx(reserved, rel=0.02)
    assert peak.tensors < peak.total < peak.reserved


def test_every_case_was_recorded_after_the_loop_was_rewritten(program):
    assert len(program.CASES) == 6
    assert [program.recorded(case) for case in program.CASES][:2] == [(20.84, 22.06), (65.8, 66.93)]
