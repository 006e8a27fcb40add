"""Runs every combination of methods and settings on tiny models, and writes what came out.

    python benchmarks/matrix.py                      # the whole, into docs/matrix.md and .jsonl
    python benchmarks/matrix.py --sample 60 --seed 1 # a few cells, printed only

A cell is adapter x alignment x quantisation x gradient checkpointing x packing x architecture. It
*works* if a run of two steps trains the adapter, is *refused* if the recipe is answered with a
located error before a weight is loaded, and anything else is a failure of llmft: exit code 1.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmft.system.quiet import before_upstream

before_upstream()

from llmft.api.errors import LlmftError  # noqa: E402
from llmft.engine.session import run_recipe  # noqa: E402
from llmft.modeling.tiny_models import tiny_model_folder  # noqa: E402
from llmft.recipes.load import load_recipe  # noqa: E402
from llmft.registry.registry import Registry  # noqa: E402
from llmft.testing.tiny_architectures import ARCHITECTURES, tiny  # noqa: E402

DOCS = Path(__file__).parents[1] / "docs"
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"r": 2},
    "qlora": {"r": 2},
    "dora": {"r": 2},
    "prefix": {"num_virtual_tokens": 3},
    "ptuning": {"num_virtual_tokens": 3},
    "prompt": {"num_virtual_tokens": 3},
}
ALIGNMENTS: dict[str, dict[str, Any]] = {
    "sft": {},
    "reward": {},
    "dpo": {},
    "orpo": {},
    "ppo": {"reward": {"method": "length", "target": 4}, "response_length": 5},
}
QUANTISATIONS = ("none", "8-bit", "4-bit")
# Double quantisation too, so that qlora, which brings its own, and the recipe agree.
FOUR = {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}


@dataclass(frozen=True)
class Cell:
    """One combination."""

    adapter: str
    alignment: str
    quantisation: str
    checkpointing: bool
    packing: bool
    architecture: str


@dataclass(frozen=True)
class Outcome:
    """What came of a cell: works, refused or failed, and why."""

    state: str
    reason: str = ""


def cells() -> list[Cell]:
    """Return every combination, in a fixed order."""
    switches = (False, True)
    axes = (ADAPTERS, ALIGNMENTS, QUANTISATIONS, switches, switches, ARCHITECTURES)
    return [Cell(*values) for values in itertools.product(*axes)]


def covering(seed: int, most: int) -> list[Cell]:
    """Return cells that show every pair of values of every two axes, as far as `most` allows."""
    left = cells()
    random.Random(seed).shuffle(left)
    chosen: list[Cell] = []
    seen: set[Any] = set()
    for cell in left:
        new = _pairs(cell) - seen
        if new:
            chosen.append(cell)
            seen |= new
        if len(chosen) == most:
            break
    return chosen


def _pairs(cell: Cell) -> set[Any]:
    return set(itertools.combinations(asdict(cell).items(), 2))


class Bench:
    """A folder with tiny models and rows, on which cells are run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = Registry.discover()
        self.models: dict[str, Path] = {}
        pairs = [
            {"prompt": f"say {n}:", "chosen": f" {n % 7}", "rejected": f" {n % 5} or so"}
            for n in range(8)
        ]
        self.rows = folder / "rows.jsonl"
        self.rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))

    def model(self, architecture: str) -> Path:
        """Return the folder of a tiny model, made once."""
        if architecture not in self.models:
            place = self.folder / architecture
            self.models[architecture] = tiny_model_folder(place, tiny(architecture))
        return self.models[architecture]

    def recipe(self, cell: Cell) -> Path:
        """Write a cell's recipe, and return its file."""
        data: dict[str, Any] = {"method": "preference", "path": str(self.rows)}
        if cell.alignment == "sft":
            data = {"method": "jsonl", "path": str(self.rows), "columns": {"completion": "chosen"}}
        if cell.alignment == "ppo":
            data = {"method": "prompts", "path": str(self.rows)}
        quantization = {"8-bit": {"load_in_8bit": True}, "4-bit": FOUR}
        train: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": 4}
        train |= {"learning_rate": 0.01, "gradient_checkpointing": cell.checkpointing}
        train |= {"packing": True, "max_length": 64} if cell.packing else {}
        recipe = {
            "recipe": 1,
            "name": "cell",
            "output_dir": str(self.folder / "runs"),
            "model": {
                "path": str(self.model(cell.architecture)),
                "quantization": quantization.get(cell.quantisation, {}),
            },
            "trackers": [],
            "stages": [
                {
                    "name": "stage",
                    "adapter": {"method": cell.adapter, **ADAPTERS[cell.adapter]},
                    "alignment": {"method": cell.alignment, **ALIGNMENTS[cell.alignment]},
                    "data": data,
                    "train": train,
                }
            ],
        }
        path = self.folder / "cell.yaml"
        path.write_text(json.dumps(recipe))  # JSON is YAML
        return path

    def run(self, cell: Cell) -> Outcome:
        """Return what comes of a cell."""
        try:
            loaded = load_recipe(self.recipe(cell), self.registry)
            summary = run_recipe(loaded)
        except LlmftError as error:
            begun = getattr(error, "run_folder", None)
            return Outcome("failed" if begun else "refused", error.faults[0].what)
        except Exception as error:  # whatever it is, it is the cell's outcome
            return Outcome("failed", f"{type(error).__name__}: {error}".splitlines()[0])
        stage = summary.stages["stage"]
        return Outcome("works") if stage.steps == 2 else Outcome("failed", "it took no steps")


def report(outcomes: Iterable[tuple[Cell, Outcome]], seconds: float) -> str:
    """Return the page: a table of adapters and settings, and every reason for a refusal."""
    outcomes = list(outcomes)
    states = Counter(outcome.state for _, outcome in outcomes)
    grid: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for cell, outcome in outcomes:
        for column in _columns(cell):
            grid[cell.adapter, column][outcome.state] += 1
    columns = list(dict.fromkeys(column for _, column in grid))
    reasons = Counter(outcome.reason for _, outcome in outcomes if outcome.state != "works")
    lines = [
        "# The compatibility matrix",
        "",
        "Every combination of six adapters, five alignments, quantisation, gradient checkpointing,",
        "packing and architecture, run for two steps on tiny models with random weights by",
        f"`python benchmarks/matrix.py`. Of {len(outcomes):,} cells {states['works']:,} work,",
        f"{states['refused']:,} are refused with their reason before a weight is loaded, and"
        f" {states['failed']:,} fail.",
        f"It took {seconds / 60:.0f} minutes on {os.cpu_count()} CPU cores that were shared.",
        "",
        "A figure is the number of cells that work, of all cells with that adapter and setting.",
        "",
        "| | " + " | ".join(ADAPTERS) + " |",
        "|---" * (len(ADAPTERS) + 1) + "|",
    ]
    for column in columns:
        counts = [grid[adapter, column] for adapter in ADAPTERS]
        shown = [f"{count['works']} of {count.total()}" for count in counts]
        lines.append(f"| {column} | " + " | ".join(shown) + " |")
    lines += ["", "## Refused, and why", "", "| cells | reason |", "|---|---|"]
    lines += [f"| {count} | {reason} |" for reason, count in reasons.most_common()]
    return "\n".join(lines) + "\n"


def _columns(cell: Cell) -> Iterator[str]:
    yield cell.alignment
    yield {"none": "not quantised"}.get(cell.quantisation, cell.quantisation)
    if cell.checkpointing:
        yield "gradient checkpointing"
    if cell.packing:
        yield "packing"
    yield cell.architecture


def main() -> int:
    """Run the cells, and print or write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, help="so many cells that cover the pairs of settings")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chosen = covering(args.seed, args.sample) if args.sample else cells()
    started = time.monotonic()
    outcomes: list[tuple[Cell, Outcome]] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for number, cell in enumerate(chosen, 1):
            outcome = bench.run(cell)
            outcomes.append((cell, outcome))
            if outcome.state == "failed" or number % 100 == 0:
                print(f"{number}/{len(chosen)} {cell} {outcome}", flush=True)
    page = report(outcomes, time.monotonic() - started)
    if args.sample:
        print(page)
    else:
        (DOCS / "matrix.md").write_text(page, "utf-8")
        lines = (json.dumps({**asdict(c), **asdict(o)}) for c, o in outcomes)
        (DOCS / "matrix.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return 1 if any(outcome.state == "failed" for _, outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
