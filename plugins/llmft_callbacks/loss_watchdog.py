"""A watch over the training loss: it ends a training that has diverged, or learns nothing more."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import model_validator

from llmft.api import (
    Callback,
    CallbackConfig,
    Field,
    Refusal,
    StageError,
    TrainingStep,
    TrainSettings,
    hookimpl,
)


class LossWatchdogConfig(CallbackConfig):
    """What is too high, what is a spike, what is a plateau, and what follows."""

    threshold: float | None = Field(
        None,
        gt=0,
        le=1e9,
        description="a step's loss above this is too high; Axolotl's loss_watchdog_threshold;"
        " default: none is",
    )
    spike_factor: float | None = Field(
        None,
        gt=1,
        le=1e9,
        description="a step's loss above so many times the mean of the `window` losses before it is"
        " a spike; default: none is",
    )
    patience: int = Field(
        3,
        ge=1,
        le=100_000_000,
        description="steps in a row with a loss that is too high, or a spike, before on_spike"
        " follows",
    )
    on_spike: Literal["fail", "end"] = Field(
        "fail",
        description="what follows then: fail stops the run, and keeps its last checkpoint; end ends"
        " the stage there, with its scores",
    )
    plateau_patience: int | None = Field(
        None,
        ge=1,
        le=100_000_000,
        description="steps in a row in which the mean of the last `window` losses has not become"
        " better, before on_plateau follows; default: never",
    )
    min_delta: float = Field(
        0.0,
        ge=0,
        le=1e9,
        description="of plateau_patience: by how much the mean has to be below the best one so far",
    )
    on_plateau: Literal["end", "fail"] = Field(
        "end", description="what follows a plateau: end or fail, as in on_spike"
    )
    window: int = Field(
        20, ge=1, le=100_000, description="the last losses of which the mean is taken"
    )

    @model_validator(mode="after")
    def _something_to_watch(self) -> LossWatchdogConfig:
        if self.threshold is None and self.spike_factor is None and self.plateau_patience is None:
            raise ValueError(
                "nothing is watched; write threshold, spike_factor or plateau_patience"
            )
        if self.min_delta and self.plateau_patience is None:
            raise ValueError("min_delta is about plateau_patience; write that, or drop it")
        return self


class LossWatchdog(Callback[LossWatchdogConfig]):
    """Ends a training whose loss stays too high, spikes, or no longer falls.

    It sees the loss of each step, before anything of the step is saved: so a run that fails here
    has its last checkpoint from before, and goes on from it with other settings.
    """

    method = "loss_watchdog"
    Config = LossWatchdogConfig

    def __init__(self, config: LossWatchdogConfig) -> None:
        super().__init__(config)
        self._losses: list[float] = []  # the last `window`, those that are too high left out
        self._high = 0
        self._best: float | None = None
        self._since = 0
        self._reason = ""

    def check(self, train: TrainSettings) -> Iterable[Refusal]:
        config, steps = self.config, train.max_steps
        if steps is None:
            return
        if config.plateau_patience is not None and config.window + config.plateau_patience > steps:
            what = f"{config.window} and {config.plateau_patience} steps pass before a plateau is"
            what += f" seen, and there are {steps}"
            yield ("plateau_patience",), what, "lower window or plateau_patience"
        if config.spike_factor is not None and config.window >= steps:
            what = f"{config.window} steps pass before a spike is seen, and there are {steps}"
            yield ("window",), what, "lower it"

    def smoke_overrides(self) -> Mapping[str, Any]:
        return {"window": 1, "plateau_patience": self.config.plateau_patience and 1}

    def on_step_end(self, training: TrainingStep) -> None:
        loss = training.metrics.get("loss")
        if loss is None or self._reason:  # none: the update was skipped
            return
        config, at = self.config, f"at step {training.step}"
        if limit := self._limit():
            what = limit[1] if loss > limit[0] else ""
            self._high = self._high + 1 if what else 0
            if self._high >= config.patience:
                steps = f"{self._high} steps in a row" if self._high > 1 else "one step"
                self._act(config.on_spike, f"the loss is {loss:.4g} {at}, and for {steps} {what}")
            if what:
                return
        self._losses = [*self._losses, loss][-config.window :]
        if config.plateau_patience is None or len(self._losses) < config.window:
            return
        mean = math.fsum(self._losses) / config.window
        if self._best is None or mean < self._best - config.min_delta:
            self._best, self._since = mean, 0
            return
        self._since += 1
        if self._since >= config.plateau_patience:
            of = f"the mean loss of {config.window} steps" if config.window > 1 else "the loss"
            steps = f"{self._since} step{'s' * (self._since > 1)} before"
            what = f"{of} is {mean:.4g} {at}, no better than {self._best:.4g} {steps}"
            self._act(config.on_plateau, what)

    def _limit(self) -> tuple[float, str] | None:
        """Return above what a loss is too high now, in words too."""
        config = self.config
        limits = []
        if config.threshold is not None:
            limits.append((config.threshold, f"above threshold: {config.threshold:g}"))
        if config.spike_factor is not None and len(self._losses) == config.window:
            mean = math.fsum(self._losses) / config.window
            of = f"the mean of the {config.window} before, {mean:.4g}"
            limits.append((config.spike_factor * mean, f"above {config.spike_factor:g} times {of}"))
        return min(limits, default=None)

    def _act(self, action: str, what: str) -> None:
        if action == "fail":
            raise StageError(
                "E308",
                what,
                fix="lower train.learning_rate, or raise warmup_steps, and go on from the last"
                " checkpoint with --resume; or change the limits of 'loss_watchdog'",
            )
        self._reason = what

    def should_continue(self) -> bool:
        return not self._reason

    def stop_reason(self) -> str:
        return self._reason

    def state(self) -> Mapping[str, Any]:
        return {
            "losses": self._losses, "high": self._high, "best": self._best, "since": self._since,
            "reason": self._reason,
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        self._losses, self._high = list(state["losses"]), state["high"]
        self._best, self._since = state["best"], state["since"]
        self._reason = state["reason"]


@hookimpl
def llmft_callbacks() -> list[type[LossWatchdog]]:
    return [LossWatchdog]
