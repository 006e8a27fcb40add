"""Compare what a plan says of a GPU's memory with what an H100 and an H200 took: no GPU is needed.

    python benchmarks/gpu/plan_memory.py [--page]

Plans the runs of 8B's shape that `h100.jsonl` and `h200.jsonl` tell of (check.py), and prints both
peaks: the most bytes of tensors (`torch.cuda.max_memory_allocated`), and what the allocator had by
then (`max_memory_reserved`). The output layer's pieces are of 130 rows, as they were when that was
measured. Exits with 1 where the tensors' peak is off by more than 1 %. --page: fills the table in
docs/plan.md.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from plan_recipes import model

from llmft.modeling import head_pieces
from llmft.planning.memory_tracker import Peak
from llmft.planning.planner import StagePlan, plan_recipe
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "plan.md"
LIMIT = 0.01
ROWS_THEN = 130


@dataclass(frozen=True)
class Case:
    """A run that was measured: the file and name of its record, and its settings."""

    chip: str
    name: str
    adapter: dict[str, Any] = field(default_factory=lambda: {"method": "lora"})
    lengths: tuple[int, ...] = (2048,) * 4
    checkpointed: bool = True


DROPPED = {"method": "lora", "lora_dropout": 0.1}
CASES = (
    Case("h200", "lora 4x2048 checkpointed"),
    Case("h200", "lora 4x2048", checkpointed=False),
    Case("h200", "lora 1x2048 checkpointed", lengths=(2048,)),
    Case("h200", "lora 1x64 checkpointed", lengths=(64,)),
    Case("h200", "lora 4x2048 dropout 0.1 checkpointed", DROPPED),
    Case("h100", "dora 4x2048 checkpointed", {"method": "dora"}),
)


def recipe(case: Case, base: Path, folder: Path) -> Path:
    """Write the recipe of a case, and its rows of so many tokens, each trained on."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [{"text": f"{n:02}" + "a" * (length - 3)} for n, length in enumerate(case.lengths)]
    (folder / "train.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    data = {"method": "jsonl", "path": str(folder), "split": "train", "columns": {"text": "text"}}
    train = {
        "max_steps": 3, "per_device_train_batch_size": len(case.lengths), "bf16": True,
        "gradient_checkpointing": case.checkpointed, "optim": "adamw_torch_fused",
    }  # fmt: skip
    stage = {
        "name": "s", "adapter": {"r": 16, "lora_alpha": 32, **case.adapter},
        "alignment": {"method": "sft"}, "data": data, "train": train,
    }  # fmt: skip
    file = folder / "recipe.yaml"
    block = {"path": str(base), "dtype": "bfloat16"}
    file.write_text(json.dumps({"recipe": 1, "name": "r", "model": block, "stages": [stage],
                                "trackers": []}))  # fmt: skip
    return file


def planned(file: Path) -> StagePlan:
    """Return the plan of a recipe's stage on an H100."""
    return plan_recipe(load_recipe(file, Registry.discover()), in_ram=False, gpu="H100").stages[0]


@contextmanager
def pieces_of(rows: int) -> Iterator[None]:
    """Let the output layer's logits be made for so many rows at a time."""
    before = head_pieces.ROWS_ON_A_GPU
    head_pieces.ROWS_ON_A_GPU = rows
    try:
        yield
    finally:
        head_pieces.ROWS_ON_A_GPU = before


def as_then(case: Case, base: Path, folder: Path) -> Peak:
    """Return the peak of a case's plan, in the pieces of its time."""
    with pieces_of(ROWS_THEN):
        return planned(recipe(case, base, folder)).peak


def recorded(case: Case) -> tuple[float, float]:
    """Return the GB that a case took: of tensors, and reserved; the last record of its name."""
    lines = (HERE / f"{case.chip}.jsonl").read_text().splitlines()
    told = [one for one in map(json.loads, lines) if one.get("version") != "before"]
    found = [one for one in told if one.get("speed") == case.name]
    return found[-1]["peak_gb"], found[-1]["reserved_gb"]


def main() -> int:
    """Print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--page", action="store_true", help="fill the table of docs/plan.md")
    asked = parser.parse_args()
    lines = [
        "| run | on an | planned, of tensors | took | error | planned, reserved | took |",
        "|---|---|---|---|---|---|---|",
    ]
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        base = model("llama", Path(scratch, "model"))
        for number, case in enumerate(CASES):
            peak = as_then(case, base, Path(scratch, str(number)))
            tensors, reserved = recorded(case)
            error = peak.tensors / 1e9 / tensors - 1
            worst = max(worst, abs(error))
            lines.append(
                f"| {case.name} | {case.chip.upper()} | {peak.tensors / 1e9:.2f} GB |"
                f" {tensors:.2f} GB | {error:+.1%} | {peak.reserved / 1e9:.2f} GB |"
                f" {reserved:.2f} GB |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
    print(*lines, sep="\n")
    if asked.page:
        fill("gpu memory", "benchmarks/gpu/plan_memory.py", lines, PAGE)
    return int(worst > LIMIT)


def fill(section: str, program: str, lines: list[str], page: Path) -> None:
    """Write a section's lines between its marks in a page."""
    begin, end = f"<!-- {section}: written by {program} -->", f"<!-- end of {section} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    text = page.read_text("utf-8")
    if not pattern.search(text):
        raise SystemExit(f"'{page}' has no marks for '{section}'")
    whole = "\n".join([begin, "", *lines, "", end])
    page.write_text(pattern.sub(lambda _: whole, text), "utf-8")


if __name__ == "__main__":
    sys.exit(main())
