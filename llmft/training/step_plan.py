"""Which items each optimiser step takes: follows from the seed and the settings alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from llmft.api.errors import StageError
from llmft.api.evaluate_settings import EvaluateSettings
from llmft.api.train_settings import SamplingStrategy, TrainSettings
from llmft.training.length_groups import grouped_order


@dataclass(frozen=True)
class Plan:
    """How many optimiser steps, and which items each takes.

    items: 0 where they are streamed: a step then takes the next ones, and all steps are one pass.
    drop_last: whether an epoch leaves out the items that fill no whole step. strategy: in which
    order an epoch takes them. lengths: of the items, in tokens, by which it may group them.
    """

    items: int
    batch: int
    accumulation: int
    steps: int
    seed: int
    drop_last: bool = False
    strategy: SamplingStrategy = "random"
    lengths: Sequence[int] = field(default=(), repr=False, compare=False)
    _newest: dict[int, list[int]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def of(
        cls,
        items: int,
        settings: TrainSettings,
        seed: int,
        processes: int = 1,
        lengths: Sequence[int] = (),
    ) -> Plan:
        """Return the plan of a stage with so many items.

        lengths: the tokens of each; needed for the order of a plan that groups by them. Raises
        StageError (E240) where items fill no step, and are left out for it.
        """
        per_step = settings.rows_per_step(processes)
        if settings.drop_last and 0 < items < per_step:
            what = f"{items} rows fill no step of {per_step}, and train.drop_last leaves them out"
            raise StageError("E240", what, fix="lower train.per_device_train_batch_size or"
                             " gradient_accumulation_steps, or remove drop_last")  # fmt: skip
        batch = settings.per_device_train_batch_size
        plan = cls(
            items, batch, per_step // batch, 0, seed, settings.drop_last,
            settings.train_sampling_strategy, lengths,
        )  # fmt: skip
        epochs = settings.num_train_epochs
        return replace(plan, steps=settings.max_steps or math.ceil(plan.steps_per_epoch * epochs))

    @property
    def rows_per_step(self) -> int:
        """Items of an optimiser step, over all processes."""
        return self.batch * self.accumulation

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass over the items."""
        if self.drop_last and self.items:
            return self.items // self.rows_per_step
        return math.ceil(self.items / self.rows_per_step) if self.items else self.steps

    def order(self, epoch: int) -> list[int]:
        """Return the order in which an epoch takes the items.

        It follows from the seed, the epoch, the lengths and the rows of a pass, and not from how
        passes are dealt to steps and processes.
        """
        if epoch not in self._newest:
            self._newest.clear()
            self._newest[epoch] = self._ordered(self.seed * 1_000_003 + epoch)
        return self._newest[epoch]

    def _ordered(self, seed: int) -> list[int]:
        if self.strategy == "sequential":
            return list(range(self.items))
        if self.strategy == "random":
            generator = torch.Generator().manual_seed(seed)
            order: list[int] = torch.randperm(self.items, generator=generator).tolist()
            return order
        if len(self.lengths) != self.items:
            raise ValueError(f"{self.items} items, and {len(self.lengths)} lengths to group by")
        return grouped_order(self.lengths, self.batch, seed)

    def step_batches(self, step: int) -> list[list[int]]:
        """Return the item numbers of each forward pass of an optimiser step (counted from 0).

        Grouped by length, the longest come first: processes take turns, and so each has its share.
        """
        epoch, at = divmod(step, self.steps_per_epoch)
        per_step = self.rows_per_step
        chosen = self.order(epoch)[at * per_step : (at + 1) * per_step]
        batches = [chosen[i : i + self.batch] for i in range(0, len(chosen), self.batch)]
        if self.strategy == "group_by_length":
            batches.sort(key=lambda batch: -max(self.lengths[n] for n in batch))
        return batches

    def interval(self, steps: float) -> int:
        """Return an interval in steps; below 1 it is a share of all, as TrainingArguments has it.

        A share is rounded up.
        """
        return math.ceil(self.steps * steps) if steps < 1 else int(steps)

    def log_due(self, step: int, settings: TrainSettings) -> bool:
        """Return whether metrics are logged after so many steps; they always are after the last."""
        return step % self.interval(settings.logging_steps) == 0 or step == self.steps

    def evaluation_due(self, step: int, asked: EvaluateSettings, settings: TrainSettings) -> bool:
        """Return whether a stage is scored after so many steps, and always after the last.

        As in transformers' Trainer: every `eval_steps`, or at the end of each epoch.
        """
        if asked.eval_strategy == "no":
            return False
        by_epoch = asked.eval_strategy == "epoch"
        steps = settings.logging_steps if asked.eval_steps is None else asked.eval_steps
        every = self.steps_per_epoch if by_epoch else self.interval(steps)
        return step % every == 0 or step == self.steps

    def save_due(self, step: int, settings: TrainSettings) -> bool:
        """Return whether a checkpoint is due after so many steps; one always is after the last."""
        if settings.save_strategy == "no":
            return False
        by_epoch = settings.save_strategy == "epoch"
        every = self.steps_per_epoch if by_epoch else self.interval(settings.save_steps)
        return step % every == 0 or step == self.steps

    def saves(self, settings: TrainSettings) -> int:
        """Return how many checkpoints a whole stage writes, if none is written for being best."""
        return sum(self.save_due(step, settings) for step in range(1, self.steps + 1))

    def evaluations(self, asked: EvaluateSettings, settings: TrainSettings) -> int:
        """Return how often a whole stage is scored during training, if it does not stop early."""
        steps = range(1, self.steps + 1)
        return sum(self.evaluation_due(step, asked, settings) for step in steps)


def warmup_of(settings: TrainSettings, steps: int, rates_per_step: int = 1) -> int:
    """Return the steps of the warm-up, of so many in all; updates, where rates move with those.

    rates_per_step: how often a rate moves in a step.
    """
    share = settings.warmup_ratio * steps * rates_per_step
    if settings.warmup_max_steps is not None:
        share = min(share, settings.warmup_max_steps)
    if settings.warmup_rounding == "axolotl":  # its builders: int(ratio * steps), and never 1
        return 2 if int(share) == 1 else int(share)
    return settings.warmup_steps * rates_per_step or math.ceil(share)


def refuse_endless_warmup(
    stage: str, settings: TrainSettings, steps: int, last: int = 0, rates_per_step: int = 1
) -> None:
    """Raise StageError where a stage would end in its warm-up, or train at rate 0 only.

    Or where a schedule has no room for its last steps. last: how many those are. rates_per_step:
    how often a rate moves in a step, which is what a schedule counts.
    """
    warmup, counted = warmup_of(settings, steps, rates_per_step), "step"
    if rates_per_step > 1:
        steps, counted = steps * rates_per_step, "update"
    if last and warmup + last > steps:
        raise StageError(
            "E300",
            f"the warm-up and the decay of stage '{stage}' take {warmup} and {last} {counted}s, of"
            f" {steps} in all",
            fix="lower the schedule's last steps (num_decay_steps), or train longer",
        )
    if warmup > steps or warmup == steps == 1:
        some = f"{steps} {counted}" + "s" * (steps > 1)
        raise StageError(
            "E300",
            f"the warm-up of stage '{stage}' takes {warmup} of its {some}, so the learning rate"
            + (" stays 0" if steps == 1 else " never reaches its peak"),
            fix="lower train.warmup_steps or warmup_ratio, or train longer",
        )
