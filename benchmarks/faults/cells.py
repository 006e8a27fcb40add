"""What is hurt: a tiny recipe for each adapter with each alignment, and the ground it stands on."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "checkpoints"))

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"r": 2, "lora_dropout": 0.2},
    "qlora": {"r": 2, "lora_dropout": 0.2},
    "dora": {"r": 2, "lora_dropout": 0.2},
    "prefix": {"num_virtual_tokens": 3, "prefix_projection": True},
    "ptuning": {"num_virtual_tokens": 3, "encoder_reparameterization_type": "LSTM",
                "encoder_dropout": 0.2},
    "prompt": {"num_virtual_tokens": 3},
}  # fmt: skip
ALIGNMENTS = {"sft": "texts", "reward": "pairs", "dpo": "pairs", "orpo": "pairs"}


@dataclass(frozen=True)
class Cell:
    """One method with another."""

    adapter: str
    alignment: str

    def __str__(self) -> str:
        return f"{self.adapter} + {self.alignment}"


CELLS = tuple(Cell(adapter, alignment) for alignment in ALIGNMENTS for adapter in ADAPTERS)


@dataclass(frozen=True)
class Ground:
    """A folder with a tiny model and tiny rows."""

    home: Path

    @classmethod
    def made(cls, home: Path) -> Ground:
        """Write the model and the rows."""
        from llmft.testing.models import tiny_model_folder

        home.mkdir(parents=True, exist_ok=True)
        tiny_model_folder(home)
        texts = [{"prompt": f"say {n}:", "completion": f" {n % 7}"} for n in range(18)]
        pairs = [{"prompt": f"say {n}:", "chosen": f" {n}", "rejected": " no"} for n in range(18)]
        for name, rows in (("texts", texts), ("pairs", pairs)):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (home / f"{name}.jsonl").write_text(text)
        return cls(home)

    def recipe(self, cell: Cell, steps: int = 4, save_steps: int = 2) -> dict[str, Any]:
        """Return the recipe of a cell: dropout, accumulation, a save in mid-epoch and one after."""
        from harness import tiny_recipe

        rows = ALIGNMENTS[cell.alignment]
        recipe = copy.deepcopy(tiny_recipe(self.home / "model", self.home / f"{rows}.jsonl"))
        stage = recipe["stages"][0]
        stage["adapter"] = {"method": cell.adapter, **ADAPTERS[cell.adapter]}
        stage["alignment"] = {"method": cell.alignment}
        stage["data"]["method"] = "jsonl" if rows == "texts" else "preference"
        stage["train"] |= {"max_steps": steps, "save_steps": save_steps}
        return recipe
