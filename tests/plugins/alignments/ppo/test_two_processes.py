"""Two processes learn what one learns from batches of twice the size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "two_processes.py"


@pytest.mark.extended
def test_two_processes_have_the_curve_of_one_with_the_doubled_batch(tmp_path):
    alone, together = tmp_path / "alone.json", tmp_path / "together.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for command, out, batch in (([sys.executable], alone, "6"), (launch, together, "3")):
        done = subprocess.run(
            [*command, str(PROGRAM), str(out), batch],
            capture_output=True, text=True, env=environment, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads(path.read_text()) for path in (alone, together))
    assert len(one["curve"]) == len(two["curve"]) == 5
    for ours, theirs in zip(one["curve"], two["curve"], strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert theirs[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    assert one["weights"].keys() == two["weights"].keys()
    for name, weights in one["weights"].items():
        assert two["weights"][name] == pytest.approx(weights, rel=1e-3, abs=1e-4), name
