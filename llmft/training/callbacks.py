"""The callbacks of a training: what they are told, whether they end it, the weights they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import torch

from llmft.api import Callback, TrainingStep
from llmft.api.errors import CheckpointError
from llmft.registry.return_checks import callback_state_of, goes_on, reason_of, weights_of
from llmft.system import distributed
from llmft.system.rng import isolated_rng

PREFIX = "callback/"
"""How the names of their tensors begin in a checkpoint: callback/<its place>/<name>."""
FACTS = "callbacks"

T = TypeVar("T")
Tensors = dict[str, torch.Tensor]


class Callbacks:
    """The callbacks of one training, asked in the order of the recipe.

    parameters: those that are trained, by name. steps: of the whole training.
    """

    def __init__(
        self,
        callbacks: Sequence[Callback[Any]],
        parameters: Mapping[str, torch.nn.Parameter],
        steps: int,
    ) -> None:
        self.callbacks, self.parameters, self.steps = callbacks, parameters, steps
        self._seen = MappingProxyType(parameters)  # one cannot take them from the next
        self._at = TrainingStep(0, steps, self._seen)

    def begin(self) -> None:
        """Tell them the parameters before the first step."""
        for callback in self.callbacks:
            self._asked(lambda callback=callback: callback.on_train_begin(self._at))

    def step_taken(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell them a step that was taken, with its own metrics."""
        self._at = TrainingStep(step, self.steps, self._seen, MappingProxyType({**metrics}))
        for callback in self.callbacks:
            self._asked(lambda callback=callback: callback.on_step_end(self._at))

    def evaluated(self, step: int, scores: Mapping[str, float]) -> None:
        """Tell them the scores of held-out rows after a step."""
        metrics = self._at.metrics if self._at.step == step else {}  # none: it was owed
        at = TrainingStep(step, self.steps, self._seen, metrics)
        for callback in self.callbacks:
            self._asked(lambda callback=callback: callback.on_evaluate(at, dict(scores)))

    def ended_by(self) -> str:
        """Return why the training ends here, '' where it goes on; all processes ask together."""
        if not self.callbacks:
            return ""
        ends = [n for n, one in enumerate(self.callbacks, 1) if not self._asked(goes_on, one)]
        first = distributed.all_reduce_max(ends[0] if ends else 0)
        if not first:
            return ""
        return self._asked(reason_of, self.callbacks[first - 1])

    def weights(self, use: Literal["evaluation", "checkpoint", "result"]) -> Tensors:
        """Return the weights to be used in place of the trained ones; {} where it is these."""
        given: Tensors = {}
        for callback in self.callbacks:
            if callback.gives_weights:
                given |= self._asked(weights_of, callback, use, self.parameters)
        return given

    def capture(self) -> tuple[Tensors, dict[str, Any]]:
        """Return their states, copied to the CPU, and their plain data, for a checkpoint."""
        tensors: Tensors = {}
        states = []
        for number, callback in enumerate(self.callbacks):
            own, plain = self._asked(callback_state_of, callback)
            for name, tensor in own.items():
                tensors[f"{PREFIX}{number}/{name}"] = tensor.detach().to("cpu", copy=True)
            states.append({"method": callback.config.method, "state": plain})
        return tensors, {FACTS: states} if states else {}

    def restore(self, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Let them become what they were at a checkpoint.

        Raises CheckpointError where it is of other callbacks.
        """
        states = facts.get(FACTS, [])
        saved = [state["method"] for state in states]
        now = [callback.config.method for callback in self.callbacks]
        if saved != now:
            raise CheckpointError(
                "E404",
                f"the stage had the plugins [{', '.join(saved)}], and now has [{', '.join(now)}]",
                fix="restore them in the recipe, or start a new run",
            )
        for number, (callback, state) in enumerate(zip(self.callbacks, states, strict=True)):
            own = f"{PREFIX}{number}/"
            mine = {n.removeprefix(own): t for n, t in tensors.items() if n.startswith(own)}
            whole = {**state["state"], **mine}
            self._asked(lambda callback=callback, whole=whole: callback.restore(whole))

    def size(self) -> int:
        """Return about how many bytes they add to a checkpoint."""
        states = (callback_state_of(callback)[0] for callback in self.callbacks)
        own: int = sum(t.nbytes for state in states for t in state.values())
        given = any(callback.gives_weights for callback in self.callbacks)
        return own + sum(p.nbytes for p in self.parameters.values()) * given

    def _asked(self, ask: Callable[..., T], *of: Any) -> T:
        """Ask plugin code, so that random numbers stay as training left them."""
        with isolated_rng(), torch.no_grad():
            return ask(*of)
