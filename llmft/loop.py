"""The one training loop: every alignment gives it items and a loss; it owns the rest.

Gradients are those of the mean over all labels (or pairs) of an optimiser step, however the step
is cut into forward passes and devices: each pass gives a sum, and the sums are divided once.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from llmft.api import Objective
from llmft.errors import Interrupted, StageError
from llmft.optimizer import make_optimizer, make_schedule
from llmft.settings import TrainSettings


@dataclass
class LoopReport:
    """What the loop did: metrics are means over the last logging window and over everything."""

    steps: int = 0
    items: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """How many optimiser steps, and which items each takes; follows from seed and settings."""

    items: int
    batch: int
    accumulation: int
    steps: int
    seed: int

    @classmethod
    def of(cls, items: int, settings: TrainSettings, seed: int, processes: int = 1) -> Plan:
        """Return the plan of a stage with so many items."""
        per_step = (
            settings.per_device_train_batch_size * settings.gradient_accumulation_steps * processes
        )
        steps = settings.max_steps or math.ceil(
            math.ceil(items / per_step) * settings.num_train_epochs
        )
        batch = settings.per_device_train_batch_size
        return cls(items, batch, settings.gradient_accumulation_steps * processes, steps, seed)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass over the items."""
        return math.ceil(self.items / (self.batch * self.accumulation))

    def order(self, epoch: int) -> list[int]:
        """Return the order in which an epoch takes the items."""
        return _shuffled(self.items, self.seed * 1_000_003 + epoch)

    def step_batches(self, step: int) -> list[list[int]]:
        """Return the item numbers of each forward pass of an optimiser step (counted from 0)."""
        epoch, at = divmod(step, self.steps_per_epoch)
        per_step = self.batch * self.accumulation
        chosen = self.order(epoch)[at * per_step : (at + 1) * per_step]
        return [chosen[i : i + self.batch] for i in range(0, len(chosen), self.batch)]


@lru_cache(maxsize=1)
def _shuffled(items: int, seed: int) -> list[int]:
    order: list[int] = torch.randperm(items, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def train(
    model: Any,
    items: Sequence[Any],
    objective: Objective,
    settings: TrainSettings,
    *,
    seed: int,
    groups: Sequence[Mapping[str, Any]] | None = None,
    on_step: Callable[[int, int, Mapping[str, float], bool], None] = lambda *_: None,
) -> LoopReport:
    """Train the parameters that require grad, in place, and return what was done.

    groups: parameter groups as torch.optim takes them; default: every trainable parameter.
    on_step: called after each optimiser step with (step, steps, metrics, whether to log).
    Raises StageError before an optimiser step whose loss or gradient is not finite, and
    Interrupted at the end of a step in which SIGINT or SIGTERM came.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision="bf16" if settings.bf16 else "no")
    plan = Plan.of(len(items), settings, seed, accelerator.num_processes)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(groups or [{"params": parameters}], settings)
    schedule = make_schedule(optimizer, settings, plan.steps)
    ready = accelerator.prepare(model) if accelerator.num_processes > 1 else model
    ready.train()
    window = _Window()
    report = LoopReport()
    started = time.monotonic()
    with stop_requests() as stop:
        for step in range(plan.steps):
            batches = plan.step_batches(step)
            mine = batches[accelerator.process_index :: accelerator.num_processes]
            window.add(_forward_backward(accelerator, ready, items, batches, mine, objective, step))
            norm = _clip(parameters, settings.max_grad_norm)
            _refuse_not_finite(window.last_loss, norm, items, batches, step)
            rate = float(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            report.steps, report.items = step + 1, report.items + sum(map(len, batches))
            report.losses.append(window.last_loss)
            log = (step + 1) % settings.logging_steps == 0 or step + 1 == plan.steps
            metrics = window.means(clear=log) | {
                "grad_norm": norm,
                "learning_rate": rate,
                "epoch": (step + 1) / plan.steps_per_epoch,
            }
            on_step(step + 1, plan.steps, metrics, log)
            if stop.signal:
                raise Interrupted(
                    stop.signal,
                    f"stopped by {signal.Signals(stop.signal).name}"
                    f" at the end of step {step + 1} of {plan.steps}",
                )
    report.seconds = time.monotonic() - started
    ready.eval()
    return report


def _forward_backward(
    accelerator: Any,
    model: Any,
    items: Sequence[Any],
    batches: Sequence[Sequence[int]],
    mine: Sequence[Sequence[int]],
    objective: Objective,
    step: int,
) -> dict[str, tuple[float, float]]:
    """Add the gradient of a step's mean loss, and return each metric as (sum, weight)."""
    total = sum(objective.weight([items[i] for i in batch]) for batch in batches)
    sums: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for batch in mine:
        chosen = [items[i] for i in batch]
        with accelerator.autocast():
            loss, extra = objective.loss(model, chosen)
        # DDP averages over processes, and each holds a part of the sum.
        accelerator.backward(loss * (accelerator.num_processes / total))
        weight = objective.weight(chosen)
        noted: dict[str, float] = {"loss": float(loss.detach()), **extra}
        for name, value in noted.items():
            before = sums[name]
            sums[name] = (before[0] + value, before[1] + weight)
    if not mine:
        raise StageError("E301", f"step {step + 1} has no rows for this process")
    return dict(sums)


class _Window:
    """Metrics between two logs, as weighted means."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.last_loss = math.nan
        self.tokens = 0.0
        self.since = time.monotonic()

    def add(self, sums: Mapping[str, tuple[float, float]]) -> None:
        for name, (value, weight) in sums.items():
            self.sums[name][0] += value
            self.sums[name][1] += weight
        self.last_loss = sums["loss"][0] / sums["loss"][1]

    def means(self, *, clear: bool) -> dict[str, float]:
        """Return the mean of each metric; `tokens` is a count, given per second instead."""
        seconds = max(time.monotonic() - self.since, 1e-9)
        out = {k: s / w for k, (s, w) in self.sums.items() if k != "tokens" and w}
        if "tokens" in self.sums:
            out["tokens_per_second"] = self.sums["tokens"][0] / seconds
        if clear:
            self.sums.clear()
            self.since = time.monotonic()
        return out


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


@dataclass
class _Stop:
    signal: int = 0


@contextmanager
def stop_requests() -> Iterator[_Stop]:
    """Yield a flag that SIGINT or SIGTERM sets; a second signal leaves at once."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: Any) -> None:
        if stop.signal:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stop.signal = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
