"""The first steps of a stage, written down: rows, ids and labels, starting weights, losses.

`python -m llmft.verifying.first_steps JOB` runs one stage in a process of its own and stops after
so many steps. JOB is a JSON file: recipe, overrides, stage, steps, folder and ended.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from llmft.api import ChatRow, CompletionRow, PreferenceRow, PromptRow, TextRow, UnpairedRow
from llmft.api.errors import LlmftError
from llmft.verifying.measuring import Meter
from llmft.verifying.rollouts import Listener

STEPS, WEIGHTS = "first-steps.json", "start.safetensors"


class Enough(BaseException):
    """As many steps as were asked for are done."""


class FirstSteps:
    """Listens to one stage and stops it after so many steps; folder: where it writes."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        self.told: dict[str, Any] = {"losses": []}
        self.records: dict[str, dict[str, Any]] = {}
        self.rollouts = Listener(self.told, lambda item: written(item, self.records))
        self.meter = Meter()

    def install(self) -> None:
        """Listen to this process from now on."""
        from llmft.engine.stage import StageRunner

        fit, on_step = StageRunner._fit, StageRunner._on_step
        reward_function = StageRunner.reward_function

        def begun(runner: StageRunner, items: Sequence[Any], objective: Any, online: Any) -> Any:
            self._begin(runner, items, online)
            return fit(runner, items, objective, online)

        def rewarded(runner: StageRunner, config: Any) -> Any:
            return self.rollouts.reward(reward_function(runner, config))

        def stepped(
            runner: StageRunner, step: int, steps: int, metrics: Mapping[str, float], log: bool
        ) -> None:
            on_step(runner, step, steps, metrics, log)
            self.told["losses"].append(metrics["loss"])
            self.told["norms"].append(metrics["grad_norm"])
            if step >= self.steps:
                self.told |= self.meter.read()
                (self.folder / STEPS).write_text(json.dumps(self.told), "utf-8")
                raise Enough

        listeners = {"_fit": begun, "_on_step": stepped, "reward_function": rewarded}
        for name, listening in listeners.items():
            setattr(StageRunner, name, listening)

    def _begin(self, runner: Any, items: Sequence[Any], online: Any) -> None:
        from safetensors.torch import save_file

        from llmft.modeling.counting import tokens_in
        from llmft.training.step_plan import Plan, warmup_of

        model = runner.models.model
        self.told["dropouts"] = without_dropout(model)
        lengths = list(map(tokens_in, items))
        plan = Plan.of(len(items), runner.train, runner.seed, lengths=lengths)
        whole = max(1, len(items) // plan.rows_per_step)
        self.steps = min(self.steps, whole, plan.steps)
        records = {row.origin: record(row) for row in runner.data.rows()}
        self.told["plan"] = {
            "steps": plan.steps, "warmup": warmup_of(runner.train, plan.steps),
            "batch": plan.batch, "accumulation": plan.accumulation,
            "max_length": runner.data.max_length,
            "rates": any("lr" in group for group in runner._groups() or ()),
        }  # fmt: skip
        self.records = records
        if online is not None:
            self.rollouts.listen(online)
        else:
            self.told["rows"] = [
                [written(items[n], records) for batch in plan.step_batches(step) for n in batch]
                for step in range(self.steps)
            ]
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        save_file(
            {name: p.detach().cpu().contiguous() for name, p in trained.items()},
            self.folder / WEIGHTS,
        )
        self.meter.start()


def without_dropout(model: Any) -> int:
    """Switch every dropout module off, for masks are drawn anew; return how many were on."""
    import torch

    on = [m for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]
    for module in on:
        module.p = 0.0
    return len(on)


def record(row: Any) -> dict[str, Any]:
    """Return a row as TRL's data sets hold it; empty where they hold none of its kind."""
    if isinstance(row, TextRow):
        return {"text": row.text}
    if isinstance(row, ChatRow):
        return {"messages": [dict(message) for message in row.messages]}
    if isinstance(row, PromptRow):
        return _turns(row.prompt)
    if isinstance(row, CompletionRow):
        return _turns(row.prompt, completion=row.completion)
    if isinstance(row, PreferenceRow):
        return _turns(row.prompt, chosen=row.chosen, rejected=row.rejected)
    if isinstance(row, UnpairedRow):
        return {**_turns(row.prompt, completion=row.completion), "label": row.label}
    return {}


def _turns(prompt: Any, **answers: str) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"prompt": prompt, **answers}
    said = {name: [{"role": "assistant", "content": text}] for name, text in answers.items()}
    return {"prompt": [dict(message) for message in prompt], **said}


def written(item: Any, records: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return an item with its ids and labels, of each answer, and the record of its row.

    other: the ids of KTO's mismatched answer behind the row's prompt.
    """
    parts = [item.chosen, item.rejected] if hasattr(item, "chosen") else [item]
    kept, other = records.get(item.origin, {}), getattr(item, "other", None)
    if hasattr(item, "label") and "chosen" in kept:  # KTO takes both answers of a preference
        answer = kept["chosen" if item.label else "rejected"]
        kept = {"prompt": kept["prompt"], "completion": answer, "label": item.label}
    return {
        "origin": item.origin,
        "record": kept,
        "other": [] if other is None else list(other.input_ids),
        "ids": [list(part.input_ids) for part in parts],
        "labels": [list(part.labels) for part in parts],
    }


def main(path: str) -> int:
    """Run the job; `ended` gets the errors, or nothing where it came to its steps."""
    order: dict[str, Any] = json.loads(Path(path).read_text("utf-8"))
    ended: dict[str, Any] = {}
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            _run(order)
    except Enough:
        pass
    except LlmftError as error:
        ended = {"code": error.exit_code, "errors": [fault.as_json() for fault in error.faults]}
    Path(order["ended"]).write_text(json.dumps(ended), "utf-8")
    return 0


def _run(order: Mapping[str, Any]) -> None:
    from llmft.engine.session import Part, run_recipe
    from llmft.recipes.load import load_recipe
    from llmft.registry.registry import Registry
    from llmft.system import trust

    trust.grant(order["trust"])
    job = load_recipe(order["recipe"], Registry.discover(), order["overrides"])
    FirstSteps(Path(order["folder"]), order["steps"]).install()
    run_recipe(job, Part(first=order["stage"], last=order["stage"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
