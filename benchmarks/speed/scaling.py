"""Draw what a run costs against rows, length and parameters: four sizes of each.

    python benchmarks/speed/scaling.py [--page]

Each size is a run of LoRA by SFT in a fresh process. Prints a table, draws docs/scaling.svg with
--page, and exits with 1 where the CPU seconds grow faster than the number of rows.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from contestants import HERE, Contestant, llmft, run_once
from picture import svg
from workload import TASKS, Shape, Task, write_task


def parameters(shape: Shape) -> int:
    """Return a model's number of weights, norms left out."""
    layer = shape.hidden * (4 * shape.hidden + 3 * shape.intermediate)
    return shape.hidden * shape.vocabulary + shape.layers * layer


BASE = replace(TASKS["sft"], steps=4)
AXES: dict[str, list[tuple[int, Task]]] = {
    "rows read": [
        (n, replace(BASE, unused=n - BASE.rows, lengths=(20, 100)))
        for n in (1_000, 4_000, 16_000, 64_000)
    ],
    "rows trained": [(8 * n, replace(BASE, steps=n)) for n in (4, 8, 16, 32)],
    "tokens in a row": [(n, replace(BASE, lengths=(n, n))) for n in (64, 128, 256, 512)],
    "parameters": [
        (parameters(shape), replace(BASE, shape=shape))
        for shape in (Shape(n, 8 * n // 3, heads=n // 48) for n in (144, 288, 576, 1152))
    ],
}
LINEAR = 1.1
"""A power that still counts as linear: figures have noise."""


def main() -> int:
    """Measure every size, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", action="store_true", help="fill the docs' table and picture")
    parser.add_argument("--axes", default=",".join(AXES), help="names, with commas between")
    asked = parser.parse_args()
    rows = []
    for axis in asked.axes.split(","):
        found = [measure(task) for _, task in AXES[axis]]
        sizes = [size for size, _ in AXES[axis]]
        # Reading comes before the first step; the other axes are about the steps.
        cpu = [run["ready_cpu"] if axis == "rows read" else run["cpu"] for run in found]
        row = {"axis": axis, "sizes": sizes, "cpu": cpu, "power": power(sizes, cpu),
               "peak_mb": [run["peak"] / 1e6 for run in found]}  # fmt: skip
        rows.append(row)
        print(json.dumps(row), flush=True)
    (HERE / "scaling.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    if asked.page:
        from page import PAGE, fill

        fill("scaling", rows)
        PAGE.with_name("scaling.svg").write_text(svg(rows), "utf-8")
    return 1 if any("rows" in row["axis"] and row["power"] > LINEAR for row in rows) else 0


def measure(task: Task) -> dict[str, Any]:
    """Return the figures of one run."""
    with tempfile.TemporaryDirectory() as folder:
        write_task(Path(folder), task)
        subprocess.run([sys.executable, str(HERE / "model_folder.py"), folder], check=True)
        return run_once(Contestant("llmft", llmft), Path(folder), threads=1)


def power(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return p of cost ~ size^p, between the second-largest size and the largest."""
    return math.log(costs[-1] / costs[-2]) / math.log(sizes[-1] / sizes[-2])


if __name__ == "__main__":
    sys.exit(main())
