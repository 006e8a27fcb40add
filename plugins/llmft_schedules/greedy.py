"""A learning rate that rises while the scores improve, and falls where they do not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import model_validator

from llmft.api import Field, Refusal, ScheduleConfig, TrainingSpan, TrainSettings, hookimpl
from llmft_schedules.of_scores import OfScores

_DEFAULT_MIN_LR = 1e-3


class Greedy(OfScores["Greedy.Config"]):
    """Divides the rate by `factor` after good evaluations, and multiplies it after bad ones.

    transformers' GreedyLR (arXiv:2512.14527) is told the loss, or metric_for_best_model; the rate
    begins at learning_rate, and may rise above it, up to max_lr.
    """

    method = "greedy"
    kept = (
        "best", "num_bad_epochs", "num_good_epochs", "cooldown_counter", "warmup_counter",
        "reset_start", "last_epoch",
    )  # fmt: skip

    class Config(ScheduleConfig):
        """When it rises and falls, and how far; what is left out is as transformers has it."""

        factor: float | None = Field(
            None,
            gt=0,
            lt=1,
            description="what the rate is multiplied by, or divided by; default: 0.95",
        )
        patience: int | None = Field(
            None,
            ge=0,
            le=100_000_000,
            description="evaluations in a row, without or with an improvement, before that;"
            " default: 10",
        )
        threshold: float | None = Field(
            None, ge=0, le=1e9, description="the least improvement that counts; default: 1e-6"
        )
        threshold_mode: Literal["rel", "abs"] | None = Field(
            None, description="whether threshold is a share of the best value; default: abs"
        )
        cooldown: int | None = Field(
            None, ge=0, le=100_000_000, description="evaluations to wait after a fall; default: 0"
        )
        warmup: int | None = Field(
            None, ge=0, le=100_000_000, description="evaluations to wait after a rise; default: 0"
        )
        min_lr: float | None = Field(
            None, ge=0, le=10, description="the rate below which none is lowered; default: 1e-3"
        )
        max_lr: float | None = Field(
            None, gt=0, le=10, description="the rate above which none is raised; default: 1"
        )
        eps: float | None = Field(
            None, ge=0, le=1, description="the least change of a rate that is made; default: 1e-8"
        )
        smooth: bool | None = Field(
            None, description="compare the mean of the last window_size scores; default: false"
        )
        window_size: int | None = Field(
            None, ge=1, le=100_000, description="of smooth: scores in the mean; default: 50"
        )
        reset_start: int | None = Field(
            None,
            ge=0,
            le=100_000_000,
            description="falls that are wanted at min_lr before the rate begins again at its start;"
            " default: 500",
        )

        @model_validator(mode="after")
        def _of_smooth(self) -> Greedy.Config:
            if self.window_size is not None and not self.smooth:
                raise ValueError("window_size is about smooth; write smooth: true, or drop it")
            return self

    def check(self, train: TrainSettings) -> Iterable[Refusal]:
        low, high = self.config.min_lr, self.config.max_lr
        if (_DEFAULT_MIN_LR if low is None else low) >= train.learning_rate:
            what = "min_lr is not below learning_rate"
            if low is None:
                what += f": it is {_DEFAULT_MIN_LR:g} by default"
            yield ("lr_scheduler_type", "min_lr"), what, "set min_lr lower"
        if (1.0 if high is None else high) < train.learning_rate:
            yield ("lr_scheduler_type", "max_lr"), "max_lr is below learning_rate", "raise it"

    def made(self, holder: Any, mode: Any, given: Mapping[str, Any]) -> Any:
        from transformers.optimization import GreedyLR

        return GreedyLR(holder, mode=mode, **given)

    def state(self) -> Mapping[str, Any]:
        smooth = self.config.smooth
        return {
            **super().state(),
            **({"window": self._theirs._streaming_avg.state_dict()} if smooth else {}),
        }

    def restore(self, state: Mapping[str, Any], span: TrainingSpan) -> None:
        super().restore(state, span)
        if self.config.smooth and "window" in state:
            self._theirs._streaming_avg.load_state_dict(dict(state["window"]))


@hookimpl
def llmft_schedules() -> list[type[Greedy]]:
    return [Greedy]
