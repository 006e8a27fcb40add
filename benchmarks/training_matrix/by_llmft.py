"""A cell by llmft, from a recipe on a tiny model's folder, and what the referee says of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from by_transformers import BETA, PPO, Answered, Case, Trained, trained
from same_masks import same_masks
from tiny_folders import NoTinyModelError, tiny_folder
from training_cells import ADAPTERS, WITH_DROPOUT, Cell

ROWS = [
    {"prompt": "say three:", "chosen": " 3 it is", "rejected": " no"},
    {"prompt": "what comes after nine?", "chosen": " ten", "rejected": " nine, or so"},
    {"prompt": "name a colour of the sky:", "chosen": " blue, by day", "rejected": " ham"},
    {"prompt": "one more, please", "chosen": " no", "rejected": " well, well"},
]
RATE, CLIP = 0.3, 1.0
CLOSE = 1e-3
"""By how much of itself a loss may be off (of a loss below a tenth: by a tenth of that)."""
CLOSE_WEIGHTS = 1e-2
"""By how much of its length what the two steps have added to the weights may be."""
NEW_TOKENS = 5


@dataclass(frozen=True)
class Outcome:
    """What came of a cell: works, works padded, refused, late, wrong, failed; and why.

    late: refused, but after weights were loaded.
    """

    state: str
    reason: str = ""


@dataclass
class Seen:
    """What a run of llmft did. loads: how often weights were loaded."""

    loads: int = 0
    padding_free: bool = False
    head: dict[str, torch.Tensor] = field(default_factory=dict)
    drawn: list[list[Answered]] = field(default_factory=list)
    logps: list[list[float]] = field(default_factory=list)


class Bench:
    """Runs cells in a folder of its own."""

    def __init__(self, home: Path) -> None:
        from llmft.registry.registry import Registry

        self.home, self.registry = home, Registry.discover()
        lines = {"pairs": ROWS, "texts": [{**r, "completion": r["chosen"]} for r in ROWS]}
        for name, rows in lines.items():
            keys = ("prompt", "completion") if name == "texts" else ("prompt", "chosen", "rejected")
            told = (json.dumps({key: row[key] for key in keys}) for row in rows)
            (home / f"{name}.jsonl").write_text("\n".join(told) + "\n")

    def run(self, cell: Cell) -> Outcome:
        """Return what comes of a cell."""
        try:
            model = tiny_folder(self.home, cell.kind, dropout=cell.dropout)
        except NoTinyModelError as error:
            return Outcome("not tried", str(error))
        place = self.home / "cell"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        with same_masks():
            return self._judged(cell, model, place)

    def _judged(self, cell: Cell, model: Path, place: Path) -> Outcome:
        from llmft.api.errors import LlmftError
        from llmft.engine.session import run_recipe
        from llmft.recipes.load import load_recipe

        seen = Seen()
        path = place / "recipe.yaml"
        path.write_text(json.dumps(self.recipe(cell, model, place)))  # JSON is YAML
        try:
            with _watched(seen, place / "start"):
                summary = run_recipe(load_recipe(path, self.registry))
        except LlmftError as error:
            if error.exit_code > 128:  # a signal, to this program
                raise
            told = error.faults[0].what
            return Outcome("late" if seen.loads else "refused", told.replace(str(model), "MODEL"))
        except Exception as error:
            return Outcome("failed", _said(error))
        stage = summary.folder / "stages" / "stage"
        case = Case(
            model, place / "start", cell.alignment, ROWS, RATE, CLIP, cell.dropout, seen.head,
            0.1 / _width(seen) if cell.alignment == "ppo" else None, seen.drawn,
        )  # fmt: skip
        try:
            wanted = trained(case)
        except Exception as error:
            return Outcome("no referee", _said(error))
        wrong = _wrong(wanted, stage, seen)
        if wrong:
            return Outcome("wrong", wrong)
        padded = cell.padding_free and not seen.padding_free
        return Outcome("works padded" if padded else "works")

    def recipe(self, cell: Cell, model: Path, place: Path) -> dict[str, Any]:
        """Return a cell's recipe: all four rows in each of two steps."""
        rows = "pairs" if cell.alignment in ("dpo", "reward") else "texts"
        method = {"pairs": "preference", "texts": "jsonl"}[rows]
        alignment: dict[str, Any] = {"method": cell.alignment}
        if cell.alignment == "dpo":
            alignment["beta"] = BETA
        if cell.alignment == "ppo":
            alignment |= {"reward": {"method": "length", "target": 4, "unit": "characters"}}
            alignment |= {"response_length": NEW_TOKENS, "num_ppo_epochs": PPO["epochs"]}
        adapter = {"method": cell.adapter, **ADAPTERS[cell.adapter]}
        if cell.dropout and cell.adapter in WITH_DROPOUT:
            adapter["lora_dropout"] = 0.25
        source = {"path": str(model), "dtype": "float32"}
        return {
            "recipe": 1,
            "name": "cell",
            "output_dir": str(place / "runs"),
            "model": source | ({} if cell.padding_free else {"attn_implementation": "eager"}),
            "trackers": [{"method": "jsonl"}],
            "stages": [
                {
                    "name": "stage",
                    "adapter": adapter,
                    "alignment": alignment,
                    "data": {"method": method, "path": str(self.home / f"{rows}.jsonl")},
                    "train": {
                        "max_steps": 2, "per_device_train_batch_size": len(ROWS),
                        "learning_rate": RATE, "lr_scheduler_type": "constant", "optim": "sgd",
                        "max_grad_norm": CLIP, "logging_steps": 1, "save_strategy": "no",
                        "weight_decay": 0.0,
                    },
                }
            ],
        }  # fmt: skip


@contextmanager
def _watched(seen: Seen, start: Path) -> Iterator[None]:
    """Note what a run loads, starts from and draws."""
    from llmft_alignments.ppo.objective import PpoObjective

    from llmft.engine.stage import StageRunner
    from llmft.modeling import attention
    from llmft.modeling.base_model import BaseModel

    load, fit, judged_of = BaseModel.load, StageRunner._fit, PpoObjective.rollouts

    def loading(base: Any, *given: Any, **named: Any) -> Any:
        seen.loads += 1
        return load(base, *given, **named)

    def fitting(runner: Any, *given: Any) -> Any:
        model = runner.models.model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        seen.padding_free = base.config._attn_implementation == attention.NAME
        heads = {"score": "score.", "value": "value."}.values()
        for name, tensor in model.named_parameters():
            if name.startswith(tuple(heads)):
                seen.head[name] = tensor.detach().clone()
        start.mkdir()
        runner.models.adapter.save(model, start)
        return fit(runner, *given)

    def judging(objective: Any, judged: Any) -> Any:
        pairs = zip(judged.rows, judged.answers, judged.scores_B.tolist(), strict=True)
        seen.drawn.append(
            [
                Answered(list(row.input_ids[: -len(one.ids)]), list(one.ids), score)
                for row, one, score in pairs
            ]
        )
        seen.logps.append([logp for one in judged.answers for logp in one.logps])
        return judged_of(objective, judged)

    with ExitStack() as replaced:
        for holder, name, own in (
            (BaseModel, "load", loading), (StageRunner, "_fit", fitting),
            (PpoObjective, "rollouts", judging),
        ):  # fmt: skip
            replaced.enter_context(patch.object(holder, name, own))
        yield


def _wrong(wanted: Trained, stage: Path, seen: Seen) -> str:
    """Return in what a run is not the referee's; '' where it is."""
    from safetensors.torch import load_file

    told = (stage / "metrics.jsonl").read_text("utf-8").splitlines()
    losses = [e["loss"] for e in map(json.loads, told) if e["phase"] == "train"]
    if len(losses) != 2:
        return f"it logged {len(losses)} steps"
    for step, (got, want) in enumerate(zip(losses, wanted.losses, strict=True), 1):
        if not abs(got - want) <= CLOSE * max(abs(want), 0.1):
            return f"the loss of step {step} is {got:.5f}, and {want:.5f} alone"
    for step, (some, others) in enumerate(zip(seen.logps, wanted.logps, strict=True), 1):
        apart = (torch.tensor(some) - torch.tensor(others)).abs().max()
        if not apart <= 1e-3:
            return f"a drawn token's log-likelihood in step {step} is {float(apart):.4f} off"
    after: dict[str, torch.Tensor] = {}
    for file in sorted((stage / "adapter").glob("*.safetensors")):
        after |= load_file(file)
    off, length = 0.0, 0.0
    for name, want in wanted.after.items():
        if name not in after:
            return f"the adapter's files have no {name}"
        moved = want - wanted.before[name]
        off += float((after[name].float() - want).square().sum())
        length += float(moved.square().sum())
    if not off**0.5 <= CLOSE_WEIGHTS * length**0.5:
        return f"the weights moved by {off**0.5 / max(length**0.5, 1e-12):.1%} of it otherwise"
    return "" if length else "the weights did not move"


def _width(seen: Seen) -> int:
    return int(seen.head["value.0.weight"].shape[1])


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
