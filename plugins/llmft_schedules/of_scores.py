"""What the schedules that follow scores share: they keep torch's or transformers' own one."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from llmft.api import Schedule, ScheduleConfig, TrainingSpan

if TYPE_CHECKING:
    import torch

C = TypeVar("C", bound=ScheduleConfig)


class OfScores(Schedule[C]):
    """A schedule that a library's class computes, which is told each evaluation's score.

    The class holds an optimiser of one number for each group, which trains nothing: so the rates
    are the library's to the bit, whatever optimiser the training has.
    """

    supports_warmup = False
    depends_on_steps = False
    follows_scores = True
    kept: ClassVar[tuple[str, ...]]
    """The attributes of the library's class that a resumed run restores; `best` is one."""

    _theirs: Any = None

    @abstractmethod
    def made(self, holder: torch.optim.Optimizer, mode: Any, given: Mapping[str, Any]) -> Any:
        """Return the library's schedule. mode: 'min' or 'max'. given: the settings that are set."""

    def rates(self, step: int, base: Sequence[float], span: TrainingSpan) -> Sequence[float]:
        if self._theirs is None:
            import torch

            groups = [{"params": [torch.nn.Parameter(torch.zeros(()))], "lr": lr} for lr in base]
            holder = torch.optim.SGD(groups, lr=span.learning_rate)
            given = self.config.model_dump(exclude={"method"}, exclude_none=True)
            mode = "max" if span.greater_is_better else "min"
            self._theirs = self.made(holder, mode, given)
        return self._now()

    def scored(self, value: float, span: TrainingSpan) -> None:
        self._theirs.step(value)

    def state(self) -> Mapping[str, Any]:
        facts = {name: getattr(self._theirs, name) for name in self.kept}
        if not math.isfinite(facts["best"]):  # no score so far
            del facts["best"]
        return facts | {"initial": self._theirs.optimizer.defaults["lr"], "rates": self._now()}

    def restore(self, state: Mapping[str, Any], span: TrainingSpan) -> None:
        """Restore it; a peak that was edited since scales the rates."""
        for name in self.kept:
            if name in state:
                setattr(self._theirs, name, state[name])
        now, then = span.learning_rate, state["initial"]
        groups = self._theirs.optimizer.param_groups
        for group, rate in zip(groups, state["rates"], strict=True):
            group["lr"] = rate if now == then else rate * now / then

    def _now(self) -> list[float]:
        return [group["lr"] for group in self._theirs.optimizer.param_groups]
