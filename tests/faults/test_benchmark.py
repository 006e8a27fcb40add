"""The program that measures: a very small sample of it, and that it would see what it looks for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "benchmarks" / "faults" / "run.py"


def test_a_small_sample_of_all_faults_ends_bit_exactly(tmp_path):
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--sample", "3", "--seed", "1", "--jobs", "1", "--no-raw"],
        capture_output=True, text=True, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    assert "| damaged file | 1 | 1 |" in done.stdout
    assert "found: 0." in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_fault_that_is_not_survived_fails_it(monkeypatch):
    for place in ("benchmarks/faults", "tests/checkpoints"):
        monkeypatch.syspath_prepend(str(ROOT / place))
    from canaries import Canaries
    from fuzz import Fuzzed
    from ours import Outcome
    from report import Measured, table
    from tally import Tally

    outcomes = [
        Outcome("lora + sft", "crash", "write", "exact"),
        Outcome("lora + sft", "full", "sync", "other bits"),
        Outcome("raw TRL", "crash", "write", "cannot go on: ValueError"),
    ]
    fuzzed = Fuzzed(2, 1, ["7: KeyError"], [1.0, 80.0])
    measured = Measured(Tally(outcomes), fuzzed, Canaries(), "run.py", 1.0)
    assert measured.failures == [
        "lora + sft, full at sync: other bits",
        "recipe 7: KeyError",
        "p99 of loading a recipe is 80 ms",
    ]
    assert "| all | 2 | 1 | 1 | 0 |" in table(measured)
