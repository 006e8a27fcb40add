"""Evaluation during training: which step is the best so far, and whether training goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from llmft.api.evaluate_settings import EvaluateSettings


class Scorer(Protocol):
    """Gives the scores of held-out rows, and changes nothing that training depends on."""

    def __call__(
        self, step: int, *, generate: bool, stopping: Callable[[], bool]
    ) -> Mapping[str, float] | None:
        """Return the scores after a step, in all processes; None where `stopping` cut them short.

        generate: whether also the metrics of generated answers are wanted.
        """


@dataclass
class Validation:
    """A stage's evaluations during training, and what follows from them.

    greater_is_better: of the metric that `settings` compares evaluations by. count: evaluations so
    far, the last of them after `step` steps; scores: what it gave; value: of the metric in it.
    best: step and value of the best one. waited: how many in a row have brought no improvement
    since.
    """

    settings: EvaluateSettings
    score: Scorer
    greater_is_better: bool = False
    count: int = 0
    step: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    value: float | None = None
    best: tuple[int, float] | None = None
    waited: int = 0

    def evaluate(self, step: int, stopping: Callable[[], bool]) -> bool | None:
        """Score the model after a step; return whether it is the best so far.

        None where a signal cut the evaluation short: it is still owed.
        """
        every = self.settings.generate_every
        generate = every is not None and (self.count + 1) % every == 0
        scores = self.score(step, generate=generate, stopping=stopping)
        if scores is None:
            return None
        self.count, self.step, self.scores = self.count + 1, step, scores
        metric = self.settings.best_metric
        self.value = scores.get(metric or "loss")
        if metric is None or self.value is None:  # a generated one, which is scored rarely
            return False
        return self._compare(step, self.value)

    def _compare(self, step: int, value: float) -> bool:
        """Take a value in as Trainer and EarlyStoppingCallback do; return whether it is the best.

        Patience ends by the improvement over the best so far; any improvement makes a new best.
        """
        better, gain = value == value, float("inf")  # NaN is never better
        if self.best is not None:
            before = self.best[1]
            better = value > before if self.greater_is_better else value < before
            gain = abs(value - before)
        enough = better and gain > self.settings.early_stopping_threshold
        self.waited = 0 if enough else self.waited + 1
        if better:
            self.best = step, value
        return better

    @property
    def stop(self) -> bool:
        """Whether training ends here, as `early_stopping_patience` says."""
        patience = self.settings.early_stopping_patience
        return patience is not None and self.waited >= patience

    def facts(self) -> dict[str, Any]:
        """Return it as plain data, for a checkpoint."""
        best = list(self.best) if self.best else None
        return {"count": self.count, "step": self.step, "best": best, "waited": self.waited}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Become what it was at a checkpoint."""
        self.count, self.step, self.waited = facts["count"], facts["step"], facts["waited"]
        self.best = (facts["best"][0], facts["best"][1]) if facts["best"] else None


def best_step(facts: Mapping[str, Any]) -> int | None:
    """Return the step of the best evaluation that a checkpoint's plain data tells of."""
    best = facts.get("evaluation", {}).get("best")
    return int(best[0]) if best else None


def evaluated_step(facts: Mapping[str, Any]) -> int:
    """Return the step of the last evaluation that a checkpoint's plain data tells of; 0: none."""
    return int(facts.get("evaluation", {}).get("step", 0))
