"""What is hurt: each adapter with each alignment, and pipelines; and the ground they stand on."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "end_to_end" / "checkpoints"))

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"r": 2, "lora_dropout": 0.2},
    "qlora": {"r": 2, "lora_dropout": 0.2},
    "dora": {"r": 2, "lora_dropout": 0.2},
    "prefix": {"num_virtual_tokens": 3, "prefix_projection": True},
    "ptuning": {"num_virtual_tokens": 3, "encoder_reparameterization_type": "LSTM",
                "encoder_dropout": 0.2},
    "prompt": {"num_virtual_tokens": 3},
}  # fmt: skip
ALIGNMENTS = {"sft": "texts", "reward": "pairs", "dpo": "pairs", "orpo": "pairs", "ppo": "texts"}
LENGTH = {"method": "length", "target": 4, "unit": "characters"}
# All that PPO keeps from step to step is in use: the controller of kl_coef, the scores' moments.
PPO = {
    "response_length": 4, "temperature": 1.0, "num_ppo_epochs": 2, "num_mini_batches": 2,
    "adap_kl_ctrl": True, "target": 0.5, "horizon": 50, "reward_scaling": True,
}  # fmt: skip

# Where a SIGKILL strikes a method: the place, and the function that is about to be called there.
_OBJECTIVE = "llmft_alignments.ppo.objective:PpoObjective"
IN_PPO = {
    "in the rollout": "llmft.modeling.decoding:log_probabilities",
    "before the reward": "llmft_alignments.ppo.rollouts:RolloutSampler.judge",
    "reward to update": f"{_OBJECTIVE}.rollouts",
    "inner epochs": f"{_OBJECTIVE}.loss",
    "after the updates": f"{_OBJECTIVE}.step_metrics",
}
BETWEEN_STAGES = {
    "before a stage": "llmft.engine.session:Session._prepare",
    "stage not saved": "llmft.runs.artifacts:save_stage",
    "after a stage": "llmft.engine.trackers:Trackers.stage_finished",
}


@dataclass(frozen=True)
class Cell:
    """One method with another, or an adapter through a pipeline's stages.

    most: how many of its events are struck, drawn by the seed; None: all of them. processes: how
    many train together; the first one is struck.
    """

    adapter: str
    alignment: str = ""
    pipeline: str = ""
    most: int | None = None
    processes: int = 1
    places: dict[str, str] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        name = f"{self.adapter} + {self.alignment}" if self.alignment else self.pipeline
        return name if self.processes == 1 else f"{name}, {self.processes} processes"


CELLS = (
    *(
        Cell(adapter, alignment, places=IN_PPO if alignment == "ppo" else {})
        for alignment in ALIGNMENTS
        for adapter in ADAPTERS
    ),
    *(
        Cell("lora", alignment, processes=2, places=IN_PPO if alignment == "ppo" else {})
        for alignment in ("sft", "dpo", "ppo")
    ),
    Cell("lora", pipeline="sft, reward, ppo", places=BETWEEN_STAGES | IN_PPO),
    Cell("dora", pipeline="sft, 2 × (collect, rank, dpo)", most=200, places=BETWEEN_STAGES),
)


@dataclass(frozen=True)
class Ground:
    """A folder with a tiny model and tiny rows."""

    home: Path

    @classmethod
    def made(cls, home: Path) -> Ground:
        """Write the model and the rows."""
        from llmft.modeling.tiny_models import tiny_model_folder

        home.mkdir(parents=True, exist_ok=True)
        tiny_model_folder(home)
        texts = [{"prompt": f"say {n}:", "completion": f" {n % 7}"} for n in range(18)]
        pairs = [{"prompt": f"say {n}:", "chosen": f" {n}", "rejected": " no"} for n in range(18)]
        for name, rows in (("texts", texts), ("pairs", pairs)):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (home / f"{name}.jsonl").write_text(text)
        return cls(home)

    def recipe(self, cell: Cell, steps: int = 4, save_steps: int = 2) -> dict[str, Any]:
        """Return the recipe of a cell: dropout, accumulation, a save in mid-epoch and one after.

        A pipeline's stages have two steps and a save after each.
        """
        recipe = self._tiny()
        if cell.alignment:
            stage = self._stage(cell.alignment, cell.alignment, cell.adapter)
            stage["train"] |= {"max_steps": steps, "save_steps": save_steps}
            return recipe | {"stages": [stage]}
        return recipe | self._pipeline(cell)

    def _tiny(self) -> dict[str, Any]:
        from harness import tiny_recipe

        return dict(tiny_recipe(self.home / "model", self.home / "texts.jsonl"))

    def _stage(self, name: str, alignment: str, adapter: str, start: str = "") -> dict[str, Any]:
        """Return a stage that trains a new adapter, or goes on with an earlier stage's."""
        (stage,) = self._tiny()["stages"]
        del stage["adapter"]
        rows = ALIGNMENTS[alignment]
        stage |= {"name": name, "alignment": {"method": alignment}}
        stage |= (
            {"start_from": start}
            if start
            else {"adapter": {"method": adapter, **ADAPTERS[adapter]}}
        )
        stage["data"] = {
            "method": "jsonl" if rows == "texts" else "preference",
            "path": str(self.home / f"{rows}.jsonl"),
        }
        if alignment == "ppo":
            stage["alignment"] |= PPO | {"reward": LENGTH}
            stage["evaluate"] = {"metrics": [], "holdout": 0.2}
        stage["train"] |= {"max_steps": 2, "save_steps": 1}
        return dict(stage)

    def _pipeline(self, cell: Cell) -> dict[str, Any]:
        first = self._stage("sft", "sft", cell.adapter)
        if "ppo" in cell.pipeline:
            last = self._stage("ppo", "ppo", cell.adapter, start="sft")
            last["alignment"]["reward_model"] = "reward"
            return {"stages": [first, self._stage("reward", "reward", cell.adapter), last]}
        texts = {"method": "jsonl", "path": str(self.home / "texts.jsonl"), "limit": 8}
        collect = {"method": "collect", "num_return_sequences": 3, "max_new_tokens": 4}
        rank = {"method": "rank", "samples": "collect", "judge": LENGTH}
        last = self._stage("dpo", "dpo", cell.adapter, start="sft")
        last["data"] = {"method": "from_stage", "stage": "rank"}
        stages = [
            first,
            {"name": "collect", "start_from": "sft", "task": collect, "data": texts},
            {"name": "rank", "task": rank},
            last,
        ]
        return {
            "stages": stages,
            "repeat": {"stages": ["collect", "rank", "dpo"], "rounds": 2},
        }
