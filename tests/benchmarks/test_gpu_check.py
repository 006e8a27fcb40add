"""The check for a GPU runs through on the CPU, and goes on where it was left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[2] / "benchmarks" / "gpu" / "check.py"


@pytest.mark.extended
def test_a_dry_check_goes_on_where_it_was_left(tmp_path: Path) -> None:
    def parts(*only: str) -> list[str]:
        command = [sys.executable, str(CHECK), "--dry", "--out", str(tmp_path), "--only", *only]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        lines = (tmp_path / "results.jsonl").read_text().splitlines()
        return [r["part"] for r in map(json.loads, lines) if "seconds" in r]

    assert parts("environment") == ["environment"]
    assert parts("environment", "attention", "same bits") == [
        "environment", "attention", "same bits",
    ]  # fmt: skip
