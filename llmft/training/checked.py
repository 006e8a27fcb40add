"""A method's objective, with all that it gives the loop held against its contract."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmft.api.context import Sum
from llmft.registry.return_checks import is_number, shown, violation

if TYPE_CHECKING:
    import torch

ONLINE = ("sample_rollouts", "updates", "should_continue", "step_metrics", "state", "restore")


class CheckedObjective:
    """An objective as `llmft.api.Objective` has it, in whose place it stands.

    method: the alignment that is named where the objective breaks the contract.
    """

    def __init__(self, objective: Any, method: Any, wanted: Sequence[str] = ()) -> None:
        self.objective, self.method = objective, method
        for name in ("weight", "loss", *wanted):
            if not callable(getattr(objective, name, None)):
                raise violation(method, f"its objective, {shown(objective)}, has no '{name}'")

    def weight(self, batch: Sequence[Any]) -> float:
        """Return the objective's weight of a batch: finite, and above 0."""
        weight = self.objective.weight(batch)
        if not (is_number(weight) and math.isfinite(weight) and weight > 0):
            what = f"the weight of a batch is {shown(weight)}; a number above 0 is wanted"
            raise violation(self.method, what)
        return float(weight)

    def loss(self, model: Any, batch: Sequence[Any]) -> tuple[torch.Tensor, Mapping[str, Sum]]:
        """Return the objective's loss of a batch, a scalar with a gradient, and sums by name."""
        import torch

        given = self.objective.loss(model, batch)
        if not (isinstance(given, tuple) and len(given) == 2):
            raise violation(self.method, f"'loss' returns {shown(given)}, not (loss, metrics)")
        loss, metrics = given
        if not isinstance(loss, torch.Tensor):
            raise violation(self.method, f"the loss is {shown(loss)}, not a tensor")
        if loss.dim():
            what = f"the loss has the shape {tuple(loss.shape)}; the batch's sum is wanted"
            raise violation(self.method, what)
        if not loss.requires_grad:
            raise violation(self.method, "the loss does not depend on what is trained")
        if not isinstance(metrics, Mapping):
            raise violation(self.method, f"the loss's metrics are {shown(metrics)}, no mapping")
        for name, given in metrics.items():
            pair = isinstance(given, tuple) and len(given) == 2
            value, count = given if pair else (given, 1.0)
            if not (is_number(count) and math.isfinite(count) and count > 0):
                what = f"the metric '{name}' is over {shown(count)} items; a number above 0"
                raise violation(self.method, f"{what} is wanted")
            if not (is_number(value) or (isinstance(value, torch.Tensor) and value.dim() == 0)):
                raise violation(self.method, f"the metric '{name}' is {shown(value)}, not a number")
        return loss, metrics


class CheckedOnlineObjective(CheckedObjective):
    """An objective as `llmft.api.OnlineObjective` has it, in whose place it stands."""

    def __init__(self, objective: Any, method: Any) -> None:
        super().__init__(objective, method, ONLINE)
        each = getattr(objective, "items_per_prompt", None)
        if not isinstance(each, int) or each < 1:
            raise violation(method, f"'items_per_prompt' is {shown(each)}, not a number above 0")
        self.items_per_prompt: int = each
        rates = getattr(objective, "rates_per_step", 1)
        if not isinstance(rates, int) or rates < 1:
            raise violation(method, f"'rates_per_step' is {shown(rates)}, not a number above 0")
        self.rates_per_step: int = rates

    def sample_rollouts(
        self,
        prompts: Sequence[Any],
        numbers: Sequence[int],
        step: int,
        stopping: Callable[[], bool],
    ) -> Sequence[Any]:
        """Return what the objective samples: each prompt's items follow one another."""
        sampled = self.objective.sample_rollouts(prompts, numbers, step, stopping)
        wanted = len(prompts) * self.items_per_prompt
        found = len(sampled) if isinstance(sampled, Sequence) else shown(sampled)
        if found != wanted:
            what = (
                f"'sample_rollouts' gives {found} items of {len(prompts)} prompts; {wanted} are"
                " wanted"
            )
            raise violation(self.method, what)
        return sampled  # type: ignore[no-any-return]

    def updates(self, items: int, step: int) -> Iterator[Sequence[int]]:
        """Yield the items of each update; there is one at least."""
        given = self.objective.updates(items, step)
        if not hasattr(given, "__iter__"):
            raise violation(self.method, f"'updates' returns {shown(given)}, and no updates")
        none = True
        for numbers in given:
            none = False
            if strange := [n for n in numbers if n not in range(items)]:
                what = f"'updates' names the item {shown(strange[0])} of {items}, counted from 0"
                raise violation(self.method, what)
            yield numbers
        if none:
            raise violation(self.method, "'updates' gives no update of a step")

    def should_continue(self, means: Mapping[str, float]) -> bool:
        """Return whether the step's next update is to be taken."""
        return bool(self.objective.should_continue(means))

    def step_metrics(self) -> Mapping[str, tuple[float, float]]:
        """Return a step's own metrics, each as (sum, weight)."""
        given = self.objective.step_metrics()
        pairs = given.values() if isinstance(given, Mapping) else (given,)
        for pair in pairs:
            fine = isinstance(pair, tuple) and len(pair) == 2 and all(map(is_number, pair))
            if not fine or not pair[1]:
                what = f"'step_metrics' gives {pair!r}; (sum, weight) by name is wanted"
                raise violation(self.method, what)
        return given  # type: ignore[no-any-return]

    def state(self) -> Mapping[str, Any]:
        """Return what the objective keeps for a resumed run, as JSON."""
        state = self.objective.state()
        try:
            json.dumps(state, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise violation(self.method, f"'state' is no JSON: {error}") from error
        if not isinstance(state, Mapping):
            raise violation(self.method, f"'state' returns {shown(state)}, not a mapping")
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Let the objective become what `state` told."""
        self.objective.restore(state)
