"""An exponential moving average of the weights, which is used in place of the last ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from llmft.api import (
    Callback,
    CallbackConfig,
    Field,
    Refusal,
    TrainingStep,
    TrainSettings,
    hookimpl,
)

if TYPE_CHECKING:
    import torch

AVERAGE = "average/"


class EmaConfig(CallbackConfig):
    """How long the average remembers, and how it starts."""

    decay: float = Field(
        0.999,
        ge=0,
        lt=1,
        description="how much of the average stays at each step: it is about that of the last"
        " 1 / (1 - decay) steps",
    )
    bias_correction: bool = Field(
        True,
        description="average the weights of steps only, as Adam corrects its moments; false: the"
        " average starts as the weights before training, which hold decay^n of it after n steps",
    )
    use_ema_warmup: bool = Field(
        False,
        description="let the decay of step n be 1 - (1 + (n - 1) / inv_gamma)^-power, up to decay,"
        " so that the first steps are forgotten; diffusers' name",
    )
    inv_gamma: float = Field(
        1.0, gt=0, le=1e9, description="of use_ema_warmup: the steps over which the decay rises"
    )
    power: float = Field(
        2 / 3, gt=0, le=100, description="of use_ema_warmup: how steeply the decay rises"
    )
    update_after_step: int = Field(
        0,
        ge=0,
        le=100_000_000,
        description="steps before the average begins, in which the trained weights are used",
    )

    @model_validator(mode="after")
    def _no_contradiction(self) -> EmaConfig:
        if self.use_ema_warmup and not self.bias_correction:
            raise ValueError(
                "use_ema_warmup begins with a decay of 0, which leaves no bias; drop"
                " bias_correction"
            )
        for name in ("inv_gamma", "power"):
            if (
                not self.use_ema_warmup
                and getattr(self, name) != EmaConfig.model_fields[name].default
            ):
                raise ValueError(f"{name} is about use_ema_warmup; write use_ema_warmup: true")
        return self


class Ema(Callback[EmaConfig]):
    """The exponential moving average of the trained weights, in float32, used in their place.

    Evaluation, the best checkpoint and the stage's result have it; training itself goes on as it
    would without. Kingma and Ba 2015 (arXiv:1412.6980), section 7.2, with its correction of the
    bias towards the start: average_n = decay average_(n-1) + (1 - decay) weights_n, from 0, divided
    by 1 - decay^n.
    """

    method = "ema"
    Config = EmaConfig
    gives_weights = True

    def __init__(self, config: EmaConfig) -> None:
        super().__init__(config)
        self._average: dict[str, torch.Tensor] = {}
        self._weight = 0.0  # of all steps in the average: 1 - decay^n where the decay is constant

    def check(self, train: TrainSettings) -> Iterable[Refusal]:
        late = self.config.update_after_step
        if train.max_steps is not None and late >= train.max_steps:
            what = f"no step is averaged: the average begins after {late} steps of"
            yield ("update_after_step",), f"{what} {train.max_steps}", "lower it"

    def smoke_overrides(self) -> Mapping[str, Any]:
        return {"update_after_step": 0}

    def state_bytes(self, parameter: torch.Tensor) -> int:
        return 4 * parameter.numel()

    def on_train_begin(self, training: TrainingStep) -> None:
        import torch

        self._average = {
            name: parameter.detach().to(torch.float32, copy=True)
            for name, parameter in training.parameters.items()
        }

    def on_step_end(self, training: TrainingStep) -> None:
        import torch

        late = training.step - self.config.update_after_step
        share = 1.0 if late <= 0 else self._share(late)
        averages, weights = [], []
        for name, parameter in training.parameters.items():
            if parameter.dtype is torch.float32:
                averages.append(self._average[name])
                weights.append(parameter.detach())
            else:  # one after the other: a copy in float32 of all would take more than the average
                self._average[name].lerp_(parameter.detach().float(), share)
        if averages:
            torch._foreach_lerp_(averages, weights, share)

    def _share(self, number: int) -> float:
        """Return how much of the new average is the weights of the `number`-th averaged step."""
        decay = self._decay(number)
        if not self.config.bias_correction:
            return 1 - decay
        self._weight = decay * self._weight + (1 - decay)
        return (1 - decay) / self._weight

    def _decay(self, number: int) -> float:
        config = self.config
        if not config.use_ema_warmup:
            return config.decay
        risen: float = 1 - (1 + (number - 1) / config.inv_gamma) ** -config.power
        return min(config.decay, risen)

    def weights(
        self, use: Literal["evaluation", "checkpoint", "result"]
    ) -> Mapping[str, torch.Tensor]:
        return self._average

    def state(self) -> Mapping[str, Any]:
        averages = {f"{AVERAGE}{name}": average for name, average in self._average.items()}
        return {"weight": self._weight, **averages}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._weight = state["weight"]
        for name, average in self._average.items():
            average.copy_(state[f"{AVERAGE}{name}"])


@hookimpl
def llmft_callbacks() -> list[type[Ema]]:
    return [Ema]
