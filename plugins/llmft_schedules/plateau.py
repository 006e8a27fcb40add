"""A learning rate that falls where the scores no longer improve."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from llmft.api import (
    Field,
    Refusal,
    Schedule,
    ScheduleConfig,
    TrainingSpan,
    TrainSettings,
    hookimpl,
)

_STATE = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")


class ReduceLrOnPlateau(Schedule["ReduceLrOnPlateau.Config"]):
    """The peak, multiplied by `factor` where evaluations bring no improvement, as torch has it.

    torch.optim.lr_scheduler.ReduceLROnPlateau is told the loss, or metric_for_best_model.
    """

    method = "reduce_lr_on_plateau"
    supports_warmup = False
    depends_on_steps = False
    follows_scores = True

    class Config(ScheduleConfig):
        """When it falls, and how far; what is left out is as torch has it."""

        factor: float | None = Field(
            None, gt=0, lt=1, description="what the rate is multiplied by; default: 0.1"
        )
        patience: int | None = Field(
            None,
            ge=0,
            le=100_000_000,
            description="evaluations without an improvement before that; default: 10",
        )
        threshold: float | None = Field(
            None, ge=0, le=1e9, description="the least improvement that counts; default: 1e-4"
        )
        threshold_mode: Literal["rel", "abs"] | None = Field(
            None, description="whether threshold is a share of the best value; default: rel"
        )
        cooldown: int | None = Field(
            None, ge=0, le=100_000_000, description="evaluations to wait after a fall; default: 0"
        )
        min_lr: float | None = Field(
            None, ge=0, le=10, description="the rate below which none is lowered; default: 0"
        )

    _torch: Any = None

    def check(self, train: TrainSettings) -> Iterable[Refusal]:
        if (self.config.min_lr or 0) >= train.learning_rate:
            what = "min_lr is not below learning_rate"
            yield ("lr_scheduler_type", "min_lr"), what, "lower it"

    def rates(self, step: int, base: Sequence[float], span: TrainingSpan) -> Sequence[float]:
        if self._torch is None:
            self._torch = self._made(base, span)
        return [group["lr"] for group in self._torch.optimizer.param_groups]

    def scored(self, value: float, span: TrainingSpan) -> None:
        self._torch.step(value)

    def state(self) -> Mapping[str, Any]:
        facts = {name: getattr(self._torch, name) for name in _STATE}
        if not math.isfinite(facts["best"]):  # no score so far
            del facts["best"]
        rates = [group["lr"] for group in self._torch.optimizer.param_groups]
        return facts | {"initial": self._torch.optimizer.defaults["lr"], "rates": rates}

    def restore(self, state: Mapping[str, Any], span: TrainingSpan) -> None:
        """Restore it; a peak that was edited since scales the rates."""
        for name in _STATE:
            if name in state:
                setattr(self._torch, name, state[name])
        now, then = span.learning_rate, state["initial"]
        groups = self._torch.optimizer.param_groups
        for group, rate in zip(groups, state["rates"], strict=True):
            group["lr"] = rate if now == then else rate * now / then

    def _made(self, base: Sequence[float], span: TrainingSpan) -> Any:
        """Return torch's schedule over an optimiser that has the groups' rates, and trains nothing.

        So the rates are torch's to the bit, whatever optimiser the training has.
        """
        import torch

        groups = [{"params": [torch.nn.Parameter(torch.zeros(()))], "lr": rate} for rate in base]
        holder = torch.optim.SGD(groups, lr=span.learning_rate)
        given = self.config.model_dump(exclude={"method"}, exclude_none=True)
        mode: Any = "max" if span.greater_is_better else "min"
        return torch.optim.lr_scheduler.ReduceLROnPlateau(holder, mode=mode, **given)


@hookimpl
def llmft_schedules() -> list[type[ReduceLrOnPlateau]]:
    return [ReduceLrOnPlateau]
