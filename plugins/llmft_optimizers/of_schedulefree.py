"""The schedule-free optimisers of Defazio et al.: they train one point, and use an average."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from llmft.api import Field, Optimizer, OptimizerConfig, Refusal, TrainSettings, hookimpl
from llmft_optimizers.making import Groups, copied, library, of_adam, usual

if TYPE_CHECKING:
    import torch


C = TypeVar("C", bound="Averaging")
_LEVEL = ("constant", "constant_with_warmup", "reduce_lr_on_plateau", "greedy")
"""Schedules that keep the rate, or move it by scores alone."""


class Averaging(OptimizerConfig):
    """How the average is weighted."""

    r: float = Field(
        0.0, ge=0, le=100, description="the weight of step k in the average grows as k to this"
    )
    weight_lr_power: float = Field(
        2.0, ge=0, le=100, description="and as the highest rate so far to this"
    )


class AveragingSgd(Averaging):
    """How the average is weighted, and how much of it is trained on."""

    momentum: float = Field(
        0.9, gt=0, lt=1, description="the weight of the average in the point that is trained"
    )


class OfSchedulefree(Optimizer[C]):
    """A schedule-free optimiser; its learning rate is to be constant, after a warm-up if any."""

    package = "schedulefree"
    group_state = ("k", "train_mode", "weight_sum", "lr_max", "scheduled_lr")
    of_class: ClassVar[str]

    def check(self, train: TrainSettings) -> Iterable[Refusal]:
        name = train.lr_scheduler_type
        if isinstance(name, str) and name not in _LEVEL:
            what = f"'{self.method}' averages steps of one learning rate, and '{name}' lowers it"
            fix = (
                "write lr_scheduler_type: constant, or constant_with_warmup; as a block,"
                f" {{method: {name}}}, it is taken as meant"
            )
            yield ("lr_scheduler_type",), what, fix

    def make(self, groups: Groups, train: TrainSettings) -> torch.optim.Optimizer:
        cls: type[torch.optim.Optimizer] = getattr(
            library(self.method, "schedulefree"), self.of_class
        )
        averaging: dict[str, Any] = {
            "r": self.config.r,
            "weight_lr_power": self.config.weight_lr_power,
        }
        return cls(copied(groups), **usual(train), **averaging, **self._own(train))

    @abstractmethod
    def _own(self, train: TrainSettings) -> dict[str, Any]:
        """Return what only this one has."""


class ScheduleFreeAdamw(OfSchedulefree[Averaging]):
    """AdamW without a schedule (Defazio et al. 2024, arXiv:2405.15682)."""

    method, of_class = "schedule_free_adamw", "AdamWScheduleFree"
    Config = Averaging

    def _own(self, train: TrainSettings) -> dict[str, Any]:
        return of_adam(train)


class ScheduleFreeSgd(OfSchedulefree[AveragingSgd]):
    """SGD without a schedule."""

    method, of_class = "schedule_free_sgd", "SGDScheduleFree"

    Config = AveragingSgd

    def _own(self, train: TrainSettings) -> dict[str, Any]:
        return {"momentum": self.config.momentum}


@hookimpl
def llmft_optimizers() -> list[type[Optimizer[Any]]]:
    return [ScheduleFreeAdamw, ScheduleFreeSgd]
