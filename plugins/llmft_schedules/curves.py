"""The learning-rate schedules of transformers that are functions of the step, by their names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar

from pydantic import model_validator

from llmft.api import (
    Field,
    Refusal,
    Schedule,
    ScheduleConfig,
    TrainingSpan,
    TrainSettings,
    hookimpl,
)

C = TypeVar("C", bound=ScheduleConfig)
Shape = Literal["linear", "cosine", "1-sqrt"]


class Curve(Schedule[C]):
    """A schedule whose curve is transformers' own, of the same name."""

    _of: TrainingSpan | None = None
    _curve: Callable[[int], float]

    def factor(self, step: int, span: TrainingSpan) -> float:
        if span != self._of:
            self._curve, self._of = self._made(span), span
        return self._curve(step)

    def given(self) -> Mapping[str, Any]:
        """Return the settings that are set, as transformers takes them."""
        return self.config.model_dump(exclude={"method"}, exclude_none=True)

    def _made(self, span: TrainingSpan) -> Callable[[int], float]:
        import torch
        from transformers import get_scheduler

        # It reads the peak of an optimiser, and gives it the curve; the optimiser is not used.
        peak = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=span.learning_rate)
        made: Any = get_scheduler(
            self.method,
            peak,
            num_warmup_steps=span.warmup_steps,
            num_training_steps=span.steps,
            scheduler_specific_kwargs=dict(self.given()),
        )
        return made.lr_lambdas[0]  # type: ignore[no-any-return]


class Constant(Curve[ScheduleConfig]):
    """The peak learning rate in every step."""

    method = "constant"
    Config = ScheduleConfig
    supports_warmup = False
    depends_on_steps = False


class ConstantWithWarmup(Curve[ScheduleConfig]):
    """The peak learning rate after the warm-up."""

    method = "constant_with_warmup"
    Config = ScheduleConfig
    depends_on_steps = False


class Linear(Curve[ScheduleConfig]):
    """A straight fall to 0 after the warm-up."""

    method = "linear"
    Config = ScheduleConfig


class Cosine(Curve["Cosine.Config"]):
    """A fall by half a wave of the cosine after the warm-up (Loshchilov and Hutter 2017)."""

    method = "cosine"

    class Config(ScheduleConfig):
        """How many waves."""

        num_cycles: float | None = Field(
            None, gt=0, le=10_000, description="waves of the cosine; default: 0.5, half a one"
        )


class CosineWithRestarts(Curve["CosineWithRestarts.Config"]):
    """Several falls by the cosine, each from the peak (Loshchilov and Hutter 2017)."""

    method = "cosine_with_restarts"

    class Config(ScheduleConfig):
        """How many falls."""

        num_cycles: float | None = Field(
            None, ge=1, le=10_000, description="how often it falls, a whole number; default: 1"
        )

        @model_validator(mode="after")
        def _whole(self) -> CosineWithRestarts.Config:
            if self.num_cycles is not None and self.num_cycles != int(self.num_cycles):
                raise ValueError("num_cycles of restarts is a whole number; round it")
            return self

    def given(self) -> Mapping[str, Any]:
        cycles = self.config.num_cycles
        return {} if cycles is None else {"num_cycles": int(cycles)}


class LowestConfig(ScheduleConfig):
    """How far the rate falls."""

    num_cycles: float | None = Field(
        None, gt=0, le=10_000, description="waves of the cosine; default: 0.5, half a one"
    )
    min_lr: float | None = Field(None, ge=0, le=10, description="the rate at the end")
    min_lr_rate: float | None = Field(
        None, ge=0, lt=1, description="the rate at the end as a share of the peak; or give min_lr"
    )

    @model_validator(mode="after")
    def _one(self) -> LowestConfig:
        if (self.min_lr is None) == (self.min_lr_rate is None):
            raise ValueError("one of min_lr and min_lr_rate is needed; set it")
        return self


class CosineWithMinLr(Curve[LowestConfig]):
    """A fall by the cosine to a rate above 0."""

    method = "cosine_with_min_lr"
    Config = LowestConfig

    def check(self, train: TrainSettings) -> Iterable[Refusal]:
        if (self.config.min_lr or 0) >= train.learning_rate:
            what = "min_lr is not below learning_rate"
            yield ("lr_scheduler_type", "min_lr"), what, "lower it"


class CosineWarmupWithMinLr(CosineWithMinLr):
    """A fall by the cosine to a rate above 0, and a warm-up that begins above 0."""

    method = "cosine_warmup_with_min_lr"

    class Config(LowestConfig):
        """How far the rate falls, and where it begins."""

        warmup_lr_rate: float | None = Field(
            None, ge=0, lt=1, description="the rate at the start as a share of the peak"
        )


class Polynomial(Curve["Polynomial.Config"]):
    """A fall by a polynomial of the steps that are left."""

    method = "polynomial"

    class Config(ScheduleConfig):
        """The end and the power."""

        lr_end: float | None = Field(
            None, ge=0, le=10, description="the rate at the end; default: 1e-7"
        )
        power: float | None = Field(None, gt=0, le=100, description="the power; default: 1")

    def check(self, train: TrainSettings) -> Iterable[Refusal]:
        end = 1e-7 if self.config.lr_end is None else self.config.lr_end
        if train.learning_rate <= end:
            what = f"it decays to {end:g}, and learning_rate is not above"
            yield ("lr_scheduler_type", "lr_end"), what, "raise learning_rate"


class InverseSqrt(Curve["InverseSqrt.Config"]):
    """A fall by the square root of the steps since the warm-up."""

    method = "inverse_sqrt"
    depends_on_steps = False

    class Config(ScheduleConfig):
        """How fast it falls."""

        timescale: int | None = Field(
            None,
            ge=1,
            le=100_000_000,
            description="steps over which it falls; default: the warm-up, or 10,000",
        )


class WarmupStableDecay(Curve["WarmupStableDecay.Config"]):
    """A warm-up, the peak, and a fall in the last steps (Hu et al. 2024, MiniCPM, section 4)."""

    method = "warmup_stable_decay"

    class Config(ScheduleConfig):
        """The last steps, and the shapes."""

        num_decay_steps: int = Field(
            ge=1, le=100_000_000, description="the last steps, over which the rate falls"
        )
        warmup_type: Shape | None = Field(None, description="how it rises; default: linear")
        decay_type: Shape | None = Field(None, description="how it falls; default: cosine")
        min_lr_ratio: float | None = Field(
            None, ge=0, lt=1, description="the rate at the end as a share of the peak; default: 0"
        )
        num_cycles: float | None = Field(
            None, gt=0, le=10_000, description="waves of the cosine; default: 0.5, half a one"
        )

    def last_steps(self) -> int:
        return self.config.num_decay_steps

    def smoke_overrides(self) -> Mapping[str, Any]:
        return {"num_decay_steps": 1}


@hookimpl
def llmft_schedules() -> list[type[Schedule[Any]]]:
    return [
        Constant, ConstantWithWarmup, Linear, Cosine, CosineWithRestarts, CosineWithMinLr,
        CosineWarmupWithMinLr, Polynomial, InverseSqrt, WarmupStableDecay,
    ]  # fmt: skip
