"""A learning rate that falls where the scores no longer improve."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from llmft.api import Field, Refusal, ScheduleConfig, TrainSettings, hookimpl
from llmft_schedules.of_scores import OfScores


class ReduceLrOnPlateau(OfScores["ReduceLrOnPlateau.Config"]):
    """The peak, multiplied by `factor` where evaluations bring no improvement, as torch has it.

    torch.optim.lr_scheduler.ReduceLROnPlateau is told the loss, or metric_for_best_model.
    """

    method = "reduce_lr_on_plateau"
    kept = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")

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

    def check(self, train: TrainSettings) -> Iterable[Refusal]:
        if (self.config.min_lr or 0) >= train.learning_rate:
            what = "min_lr is not below learning_rate"
            yield ("lr_scheduler_type", "min_lr"), what, "lower it"

    def made(self, holder: Any, mode: Any, given: Mapping[str, Any]) -> Any:
        from torch.optim.lr_scheduler import ReduceLROnPlateau

        return ReduceLROnPlateau(holder, mode=mode, **given)


@hookimpl
def llmft_schedules() -> list[type[ReduceLrOnPlateau]]:
    return [ReduceLrOnPlateau]
