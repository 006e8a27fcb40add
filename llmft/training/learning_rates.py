"""The learning rates of an optimiser's groups, step by step, as a schedule has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmft.api import Schedule, TrainingSpan
from llmft.registry.return_checks import rates_of, state_of

if TYPE_CHECKING:
    import torch


class LearningRates:
    """Sets the rates of an optimiser's groups to what a schedule says of each step.

    span: counted in updates. per_step: how many updates with rates of their own a step has.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule[Any],
        span: TrainingSpan,
        per_step: int = 1,
    ) -> None:
        self.optimizer, self.schedule, self.span = optimizer, schedule, span
        self.per_step = per_step
        self.base = [float(group["lr"]) for group in optimizer.param_groups]
        self.go_to(0)

    @property
    def follows_scores(self) -> bool:
        """Whether the schedule is told every evaluation."""
        return self.schedule.follows_scores

    def get_last_lr(self) -> Sequence[float]:
        """Return the rate of each group, as torch's schedules do."""
        return self._rates

    def step(self) -> None:
        """Go on to the next step."""
        self.go_to(self.at + 1)

    def next_update(self) -> None:
        """Go on to the next update within a step; it keeps the rates of the last one known."""
        if self.update + 1 < self.per_step:
            self.update += 1
            self._set()

    def go_to(self, step: int) -> None:
        """Set the rates of a step's first update, from the recipe's own settings."""
        self.at, self.update = step, 0
        self._set()

    def _set(self) -> None:
        number = self.at * self.per_step + self.update
        self._rates = rates_of(self.schedule, number, self.base, self.span)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate

    def scored(self, value: float) -> None:
        """Tell the schedule an evaluation, if it asks for them."""
        if self.follows_scores:
            self.schedule.scored(value, self.span)
            self.go_to(self.at)

    def facts(self) -> dict[str, Any]:
        """Return the schedule's state as plain data, for a checkpoint; {} where it has none."""
        state = state_of(self.schedule)
        return {"schedule": state, "schedule_method": self.schedule.config.method} if state else {}

    def restore(self, step: int, facts: Mapping[str, Any]) -> None:
        """Become what it was after so many steps; the state of another schedule is left out."""
        # A checkpoint of a version that had one schedule with a state does not name it.
        method = facts.get("schedule_method", "reduce_lr_on_plateau")
        state = facts.get("schedule")
        if state and method == self.schedule.config.method:
            self.schedule.restore(state, self.span)
        self.go_to(step)
