"""The one training loop: every alignment gives it items and a loss; it owns the rest.

Gradients are those of the mean over all labels (or pairs) of an optimiser step, however the step
is cut into forward passes and devices: each pass gives a sum, and the sums are divided once.
"""

from __future__ import annotations

import math
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from llmft.api import Objective
from llmft.errors import CheckpointError, Interrupted, StageError
from llmft.saving import training_state
from llmft.saving.checkpoints import Checkpoints, Saved, check_space
from llmft.settings import TrainSettings
from llmft.training.optimizer import make_optimizer, make_schedule
from llmft.training.plan import Plan
from llmft.training.signals import stop_requests
from llmft.training.tally import LoopReport, Window


def train(
    model: Any,
    items: Sequence[Any],
    objective: Objective,
    settings: TrainSettings,
    *,
    seed: int,
    groups: Sequence[Mapping[str, Any]] | None = None,
    on_step: Callable[[int, int, Mapping[str, float], bool], None] = lambda *_: None,
    checkpoints: Checkpoints | None = None,
    saved: Saved | None = None,
) -> LoopReport:
    """Train the parameters that require grad, in place, and return what was done.

    groups: parameter groups as torch.optim takes them; default: every trainable parameter.
    on_step: called after each optimiser step with (step, steps, metrics, whether to log).
    checkpoints: where the state goes when the settings say so, and on a signal. saved: go on there.
    Raises StageError before an optimiser step whose loss or gradient is not finite, and
    Interrupted at the end of a step in which SIGINT or SIGTERM came.
    """
    from accelerate import Accelerator

    # Its mixed precision would be one for all stages of a process; autocast is set by hand below.
    accelerator = Accelerator()
    plan = Plan.of(len(items), settings, seed, accelerator.num_processes)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(groups or [{"params": parameters}], settings)
    schedule = make_schedule(optimizer, settings, plan.steps)
    ready = accelerator.prepare(model) if accelerator.num_processes > 1 else model
    ready.train()
    window = Window()
    report = LoopReport()
    if checkpoints:
        _check_space(checkpoints, model, plan, settings)
    if saved:
        _refuse_beyond(saved, plan)
        training_state.restore(model, optimizer, schedule, saved.step, saved.tensors, saved.facts)
        window.restore(saved.facts["window"])
        report.restore(saved.facts["report"])
    started = time.monotonic() - report.seconds
    with stop_requests() as stop:
        for step in range(report.steps, plan.steps):
            batches = plan.step_batches(step)
            mine = batches[accelerator.process_index :: accelerator.num_processes]
            bf16 = settings.bf16
            window.add(_forward_backward(accelerator, ready, items, batches, mine, objective, bf16))
            norm = _clip(parameters, settings.max_grad_norm)
            _refuse_not_finite(window.last_loss, norm, items, batches, step)
            rate = float(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            report.steps, report.items = step + 1, report.items + sum(map(len, batches))
            report.losses.append(window.last_loss)
            report.seconds = time.monotonic() - started
            log = (step + 1) % settings.logging_steps == 0 or step + 1 == plan.steps
            metrics = window.means(clear=log) | {
                "grad_norm": norm,
                "learning_rate": rate,
                "epoch": (step + 1) / plan.steps_per_epoch,
            }
            on_step(step + 1, plan.steps, metrics, log)
            if checkpoints and (stop.signal or plan.save_due(step + 1, settings)):
                with stop.waiting():
                    tensors, facts = training_state.capture(model, optimizer)
                    facts |= {"window": window.facts(), "report": report.facts()}
                    checkpoints.save(step + 1, tensors, facts)
            if stop.signal:
                raise Interrupted(
                    stop.signal,
                    f"stopped by {signal.Signals(stop.signal).name}"
                    f" at the end of step {step + 1} of {plan.steps}",
                )
    ready.eval()
    return report


def _check_space(checkpoints: Checkpoints, model: Any, plan: Plan, settings: TrainSettings) -> None:
    """Refuse a disk that cannot hold the checkpoints that are kept, and one while it is written."""
    planned = min(plan.saves(settings), settings.save_total_limit + 1)
    if more := planned - len(checkpoints.steps()):
        check_space(checkpoints.folder.parent, training_state.size_of(model), max(more, 1))


def _refuse_beyond(saved: Saved, plan: Plan) -> None:
    if saved.step > plan.steps:
        raise CheckpointError(
            "E404",
            f"the run is at step {saved.step} already, and the recipe now ends at {plan.steps}",
            fix="raise train.max_steps or train.num_train_epochs again",
        )


def _forward_backward(
    accelerator: Any,
    model: Any,
    items: Sequence[Any],
    batches: Sequence[Sequence[int]],
    mine: Sequence[Sequence[int]],
    objective: Objective,
    bf16: bool,
) -> dict[str, tuple[float, float]]:
    """Add the gradient of a step's mean loss, and return each metric as (sum, weight)."""
    if not mine:
        raise StageError("E301", "a step has no rows for this process; use fewer processes")
    total = sum(objective.weight([items[i] for i in batch]) for batch in batches)
    sums: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for batch in mine:
        chosen = [items[i] for i in batch]
        with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=bf16):
            loss, extra = objective.loss(model, chosen)
        # DDP averages over processes, and each holds a part of the sum.
        accelerator.backward(loss * (accelerator.num_processes / total))
        weight = objective.weight(chosen)
        noted: dict[str, float] = {"loss": float(loss.detach()), **extra}
        for name, value in noted.items():
            before = sums[name]
            sums[name] = (before[0] + value, before[1] + weight)
    return dict(sums)


def _clip(parameters: Sequence[torch.nn.Parameter], limit: float) -> float:
    """Scale the gradient down to the limit (0: leave it), and return its norm before."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit or math.inf)
    return float(norm)


def _refuse_not_finite(
    loss: float, norm: float, items: Sequence[Any], batches: Sequence[Sequence[int]], step: int
) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    what = "loss" if not math.isfinite(loss) else "gradient"
    origins = [getattr(items[i], "origin", "") or f"row {i}" for batch in batches for i in batch]
    shown = ", ".join(origins[:4]) + (f" and {len(origins) - 4} more" if origins[4:] else "")
    raise StageError(
        "E301",
        f"the {what} is not finite at step {step + 1}, before its update; rows: {shown}",
        fix="lower train.learning_rate or train.max_grad_norm, or use bf16 in place of float16",
    )
