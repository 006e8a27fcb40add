"""The one training loop: every alignment gives it items and a loss; it owns the rest.

Gradients are those of the mean over all labels (or pairs) of an optimiser step, however the step
is cut into forward passes and devices: each pass gives a sum, and the sums are divided once.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from llmft.api import Callback, Objective, OnlineObjective, Optimizer, Schedule
from llmft.api.context import Sum
from llmft.api.errors import CheckpointError, Interrupted, StageError
from llmft.api.train_settings import TrainSettings
from llmft.data.streaming import StreamedItems
from llmft.modeling.batching import is_padding_free
from llmft.modeling.counting import tokens_in
from llmft.modeling.decoding import Stopped
from llmft.modeling.noisy_embeddings import noisy_embeddings
from llmft.modeling.sharded_layers import collect_gradients, is_here, is_sharded, owner_of
from llmft.system import distributed
from llmft.system.kept_memory import freed_memory_kept
from llmft.system.rng import isolated_rng
from llmft.system.signals import Stop, stop_requests
from llmft.training import guard, modes, training_state
from llmft.training.callbacks import Callbacks
from llmft.training.checkpoints import Checkpoints, Saved, check_space
from llmft.training.metrics import LoopReport, Window, means_of
from llmft.training.optimizer import installed_method, make_optimizer, make_schedule
from llmft.training.step_plan import Plan
from llmft.training.updates import Budget, FixedItems, NextItems, OnlineItems, Update
from llmft.training.validation import Validation


def train(
    model: Any,
    items: Sequence[Any] | StreamedItems,
    objective: Objective,
    settings: TrainSettings,
    *,
    seed: int,
    groups: Sequence[Mapping[str, Any]] | None = None,
    on_step: Callable[[int, int, Mapping[str, float], bool], None] = lambda *_: None,
    checkpoints: Checkpoints | None = None,
    saved: Saved | None = None,
    online: OnlineObjective | None = None,
    validation: Validation | None = None,
    schedule: Schedule[Any] | None = None,
    optimizer: Optimizer[Any] | None = None,
    callbacks: Sequence[Callback[Any]] = (),
) -> LoopReport:
    """Train the parameters that require grad, in place, and return what was done.

    items: those of each epoch, or a stream of them, of which `settings.max_steps` steps are taken.
    groups: parameter groups as torch.optim takes them; default: every trainable parameter.
    on_step: called after each step with (step, steps, metrics, whether to log).
    checkpoints: where the state goes when the settings say so, and on a signal. saved: go on there.
    online: the objective, where it draws its own items of the prompts that `items` then are: a
    step is one drawing and the updates that learn from it.
    validation: scores the model in between. A new best is saved, which needs `checkpoints`; it is
    what the model is in the end, where its settings say so.
    schedule: how the learning rate moves, an object of this training's own; default: the installed
    one that the settings name. optimizer: what moves the parameters; default: likewise.
    callbacks: what acts after each step, objects of this training's own.
    Raises StageError before an optimiser update whose loss or gradient is not finite, and
    Interrupted at the end of a step in which SIGINT or SIGTERM came, or while items were drawn.
    Of several processes, all do what one of them is asked to.
    """
    training = _Training(
        model, items, objective, settings, seed, groups, on_step, checkpoints, online, validation,
        schedule, optimizer, callbacks,
    )  # fmt: skip
    if saved:
        training.restore(saved)
    return training.run(saved)


class _Training:
    """A training from its first step, or from a checkpoint, to its end: see `train`."""

    def __init__(
        self,
        model: Any,
        items: Sequence[Any] | StreamedItems,
        objective: Objective,
        settings: TrainSettings,
        seed: int,
        groups: Sequence[Mapping[str, Any]] | None,
        on_step: Callable[[int, int, Mapping[str, float], bool], None],
        checkpoints: Checkpoints | None,
        online: OnlineObjective | None,
        validation: Validation | None,
        schedule: Schedule[Any] | None,
        optimizer: Optimizer[Any] | None,
        callbacks: Sequence[Callback[Any]],
    ) -> None:
        from accelerate import Accelerator

        # Its mixed precision would be one for all stages of a process; autocast is set by hand.
        self.accelerator = Accelerator()
        self.model, self.objective, self.settings = model, objective, settings
        self.on_step, self.checkpoints = on_step, checkpoints
        self.online, self.validation = online, validation
        self.stream = items if isinstance(items, StreamedItems) else None
        listed: Sequence[Any] = () if isinstance(items, StreamedItems) else items
        grouped = settings.train_sampling_strategy == "group_by_length"
        lengths = list(map(tokens_in, listed)) if grouped else ()
        self.plan = plan = Plan.of(len(listed), settings, seed, distributed.count(), lengths)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        distributed.broadcast_parameters([p for p in self.parameters if owner_of(p) is None])
        self.method = optimizer or installed_method("optimizer", settings)
        groups = [
            {**group, "params": [p for p in group["params"] if is_here(p)]}
            for group in groups or [{"params": self.parameters}]
        ]
        self.optimizer = make_optimizer(groups, settings, self.method)
        modes.to_training(self.optimizer)
        greater = validation is not None and validation.greater_is_better
        self.rates = make_schedule(
            self.optimizer, settings, plan.steps, greater_is_better=greater, schedule=schedule,
            rates_per_step=1 if online is None else online.rates_per_step,
        )  # fmt: skip
        self.source: FixedItems | NextItems | OnlineItems
        tokens = settings.per_device_train_tokens
        budget = Budget(tokens, not is_padding_free(model)) if tokens else None
        if isinstance(items, StreamedItems):
            self.source = NextItems(items, objective, plan, budget)
        elif online is None:
            self.source = FixedItems(items, objective, plan, budget)
        else:
            self.source = OnlineItems(items, online, plan, self._autocast)
        model.train()
        self.window, self.report = Window(), LoopReport()
        here = {name: p for name, p in training_state.trainable(model).items() if is_here(p)}
        self.callbacks = Callbacks(callbacks, here, plan.steps)
        self.callbacks.begin()
        if checkpoints and distributed.rank() == 0:
            size = training_state.size_of(model) + self.callbacks.size()
            _check_space(checkpoints, size, plan, settings, validation)
        self.started = time.monotonic()

    def restore(self, saved: Saved) -> None:
        """Become what a training was at a checkpoint."""
        _refuse_misfit(saved, self.plan)
        facts = saved.facts
        training_state.restore(
            self.model, self.optimizer, self.rates, saved.step, saved.tensors, facts, self.method
        )
        self.window.restore(facts["window"])
        self.report.restore(facts["report"])
        if self.stream is not None:
            self.stream.restore(facts["stream"])
        if self.online is not None:
            self.online.restore(facts["objective"])
        if self.validation is not None:
            self.validation.restore(facts["evaluation"])
        self.callbacks.restore(saved.tensors, facts)
        self.started = time.monotonic() - self.report.seconds

    def run(self, saved: Saved | None) -> LoopReport:
        """Take the steps that are left. saved: the checkpoint that they begin at."""
        with stop_requests() as stop, freed_memory_kept():
            if saved and self.validation:  # a signal came before it was scored
                self._evaluate(saved.step, stop)
                if asked := distributed.all_reduce_max(stop.signal):
                    raise _interrupted(asked, saved.step, self.plan)
            for step in range(self.report.steps, self.plan.steps):
                if self._ends():
                    break
                rate = float(self.rates.get_last_lr()[0])
                sums, norms = self._step(step, stop)
                log = self.plan.log_due(step + 1, self.settings)
                of_step = _of_step(self.report, self.plan, norms, rate)
                metrics = self.window.means(clear=log) | of_step
                self.on_step(step + 1, self.plan.steps, metrics, log)
                self.callbacks.step_taken(step + 1, means_of(sums) | of_step)
                best = self._evaluate(step + 1, stop)
                self._save_where_due(step + 1, best, stop)
        guard.refuse_none_learnt(self.report.losses)
        modes.to_use(self.optimizer)
        modes.put(self.callbacks.parameters, self.callbacks.weights("result"))
        if self.validation and self.checkpoints:
            _load_best(self.model, self.report, self.validation, self.checkpoints)
        self.model.eval()
        return self.report

    def _ends(self) -> bool:
        """Return whether training ends here, before its last step; all processes ask together."""
        self.report.ended_by = self.callbacks.ended_by()
        return bool(self.report.ended_by) or bool(self.validation and self.validation.stop)

    def _step(self, step: int, stop: Stop) -> tuple[distributed.Sums, list[float]]:
        """Take the updates of a step, and count it.

        Return what it is measured by, as sums, and the gradients' norms before clipping.
        """
        sums: distributed.Sums = {}
        norms: list[float] = []
        update: Update | None = None
        try:
            for number, update in enumerate(self.source.updates(step, stop)):
                if number:
                    self.rates.next_update()
                norm = self._update(update, step)
                if norm is not None:
                    norms.append(norm)
                    distributed.add(sums, update.sums)
        except Stopped:  # while items were drawn: all is as it was at the end of the last step
            asked = distributed.all_reduce_max(stop.signal)
            if self.checkpoints and step and _lacks(self.checkpoints, step):
                with stop.waiting():
                    self._save(step)
            raise _interrupted(asked, step, self.plan) from None
        except (MemoryError, RuntimeError) as error:
            if fault := guard.out_of_memory(error, update, step, self.settings):
                raise fault from error
            if refused := guard.not_deterministic(error, step):
                raise refused from error
            raise
        self.rates.step()
        distributed.add(sums, self.source.metrics())
        self.window.add(sums)
        self.report.steps = step + 1
        self.report.losses.append(self.window.last_loss if "loss" in sums else None)
        self.report.seconds = time.monotonic() - self.started
        return sums, norms

    def _update(self, update: Update, step: int) -> float | None:
        """Move the parameters once; return the gradient's norm, or None where it was left out."""
        with noisy_embeddings(self.model, self.settings.neftune_noise_alpha):
            passes = _forward_backward(
                self.accelerator, self.model, update, self.objective, self._autocast
            )
        distributed.refuse_out_of_step()
        collect_gradients(self.model)
        distributed.all_reduce_gradients([p for p in self.parameters if owner_of(p) is None])
        own, norm = _read(passes, _clip(self.parameters, self.settings.max_grad_norm))
        update.sums = distributed.merged(own)
        self.report.items += update.fresh
        try:
            fine = guard.may_update(update, norm, step, self.settings)
        except StageError:
            guard.refuse_broken_weights(self.model, self.method, step)
            raise
        if fine:
            self.optimizer.step()
        else:
            self.report.skipped += 1
        self.optimizer.zero_grad(set_to_none=True)
        return norm if fine else None

    def _evaluate(self, step: int, stop: Stop) -> bool:
        """Score the model where that is due or owed; return whether it is the best so far."""
        validation = self.validation
        if validation is None or validation.step == step:
            return False
        if not self.plan.evaluation_due(step, validation.settings, self.settings):
            return False
        if distributed.all_reduce_max(stop.signal):  # it is scored when the run goes on
            return False
        began = time.monotonic()
        callbacks = self.callbacks
        given = callbacks.weights("evaluation")
        with modes.in_use(self.optimizer, callbacks.parameters, given):
            best = validation.evaluate(step, stop)
        if best is not None:
            callbacks.evaluated(step, validation.scores)
        if best is not None and validation.value is not None:
            self.rates.scored(validation.value)
        if best and self.checkpoints:
            self.checkpoints.best = step
        took = time.monotonic() - began
        self.started += took
        self.window.pause(took)
        return bool(best)

    def _save_where_due(self, step: int, best: bool, stop: Stop) -> None:
        """Write a checkpoint where one is due, and then end where a process was asked to stop.

        It is due by the settings, where it is the best so far, and at a stop. Raises Interrupted.
        """
        asked = distributed.all_reduce_max(stop.signal)
        ends = self._ends() and self.settings.save_strategy != "no"
        due = self.plan.save_due(step, self.settings) or best or ends
        if self.checkpoints and (asked or due):
            with stop.waiting():
                self._save(step)
            asked = distributed.all_reduce_max(stop.signal)
        if asked:
            raise _interrupted(asked, step, self.plan)

    def _save(self, step: int) -> None:
        assert self.checkpoints is not None
        given = self.callbacks.weights("checkpoint")
        tensors, facts = training_state.capture(self.model, self.optimizer, self.method, given)
        of_callbacks, states = self.callbacks.capture()
        tensors |= of_callbacks
        facts |= states
        facts |= {"window": self.window.facts(), "report": self.report.facts()}
        facts["rows_per_step"] = self.plan.rows_per_step
        facts |= self.rates.facts()
        if self.stream is not None:
            facts["stream"] = self.stream.state()
        if self.online is not None:
            facts["objective"] = dict(self.online.state())
        if self.validation is not None:
            facts["evaluation"] = self.validation.facts()
        if distributed.rank() == 0:
            self.checkpoints.save(step, tensors, facts)

    def _autocast(self) -> Any:
        return torch.autocast(
            self.accelerator.device.type,
            torch.bfloat16,
            enabled=self.settings.under_autocast,
            # It would keep 16 bits of every weight that this process has not.
            cache_enabled=not is_sharded(self.model),
        )


def _load_best(
    model: Any, report: LoopReport, validation: Validation, checkpoints: Checkpoints
) -> None:
    """Give a model the weights of the best evaluation, where the recipe asks for it."""
    best = validation.best
    if not validation.settings.load_best_model_at_end or best is None or best[0] == report.steps:
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    if any(owner_of(p) is not None for p in parameters):  # each process puts back its own
        saved = checkpoints.in_all(checkpoints.best_saved)
        training_state.restore_weights(model, saved.tensors if saved else {})
        return
    if distributed.rank() == 0:
        training_state.restore_weights(model, checkpoints.best_tensors())
    distributed.broadcast_parameters(parameters)


def _of_step(
    report: LoopReport, plan: Plan, norms: Sequence[float], rate: float
) -> dict[str, float]:
    """Return the metrics of the report's last step that are no means over its items."""
    return {
        **({"grad_norm": sum(norms) / len(norms)} if norms else {}),
        "learning_rate": rate,
        **({"epoch": report.steps / plan.steps_per_epoch} if plan.items else {}),
        **({"skipped_updates": report.skipped} if report.skipped else {}),
    }


def _interrupted(asked: int, step: int, plan: Plan) -> Interrupted:
    where = f"at the end of step {step} of {plan.steps}" if step else "in the first step"
    return Interrupted(asked, f"stopped by {signal.Signals(asked).name} {where}")


def _lacks(checkpoints: Checkpoints, step: int) -> bool:
    """Return whether no checkpoint is of a step's end; the first process's folder is asked."""
    return distributed.on_rank_zero(lambda: step not in checkpoints.steps())


def _check_space(
    checkpoints: Checkpoints,
    size: int,
    plan: Plan,
    settings: TrainSettings,
    validation: Validation | None = None,
) -> None:
    """Refuse a disk that cannot hold the checkpoints that are kept, and one while it is written.

    size: about the bytes of one.
    """
    saves = plan.saves(settings)
    if validation and validation.settings.best_metric:  # any of them may be the best
        saves += plan.evaluations(validation.settings, settings)
    planned = min(saves, settings.save_total_limit + 1)
    if more := planned - len(checkpoints.steps()):
        check_space(checkpoints.folder.parent, size, max(more, 1))


def _refuse_misfit(saved: Saved, plan: Plan) -> None:
    """Raise CheckpointError where training cannot go on from a checkpoint as it is asked to."""
    before, now = saved.facts.get("rows_per_step", plan.rows_per_step), plan.rows_per_step
    if before != now:
        raise CheckpointError(
            "E404",
            f"a step of the stage had {before} rows, and cannot continue with {now}",
            fix=f"set train.train_batch_size: {before}, or start a new run without --resume",
        )
    if saved.step > plan.steps:
        raise CheckpointError(
            "E404",
            f"the run is at step {saved.step} already, and the recipe now ends at {plan.steps}",
            fix="raise train.max_steps or train.num_train_epochs again",
        )


def _forward_backward(
    accelerator: Any, model: Any, update: Update, objective: Objective, around: Callable[[], Any]
) -> list[Pass]:
    """Add the gradient of an update's mean loss; return each pass's metrics and their weight."""
    noted: list[Pass] = []
    for chosen in update.passes:
        with around():
            loss, extra = objective.loss(model, chosen)
        accelerator.backward(loss * (1 / update.weight))
        noted.append(({"loss": loss.detach(), **extra}, objective.weight(chosen)))
    for chosen in update.idle:
        with isolated_rng(), around():
            accelerator.backward(objective.loss(model, chosen)[0] * 0)
    return noted


Pass = tuple[dict[str, Sum], float]
"""What one forward pass is measured by, its loss first, and the weight of its items."""


def _read(passes: Sequence[Pass], norm: torch.Tensor) -> tuple[distributed.Sums, float]:
    """Return each metric as (sum, weight), and the gradient's norm as a number.

    Whatever is on a GPU is read in one go: the host waits for it once an update, not once a number.
    """
    own = [
        (name, *(given if isinstance(given, tuple) else (given, weight)))
        for metrics, weight in passes
        for name, given in metrics.items()
    ]
    tensors = [value for _, value, _ in own if isinstance(value, torch.Tensor)]
    tensors = [t.detach().to(norm.device, torch.float64) for t in [*tensors, norm]]
    numbers = iter(torch.stack(tensors).tolist())
    sums: distributed.Sums = {}
    for name, value, weight in own:
        number = next(numbers) if isinstance(value, torch.Tensor) else value
        distributed.add(sums, {name: (number, weight)})
    return sums, next(numbers)


def _clip(parameters: Sequence[torch.nn.Parameter], limit: float) -> torch.Tensor:
    """Scale the gradient down to the limit (0: leave it), and return its norm before."""
    if all(owner_of(p) is None for p in parameters):
        return torch.nn.utils.clip_grad_norm_(parameters, limit or math.inf)
    here = [(p, p.grad) for p in parameters if p.grad is not None]
    device = parameters[0].device
    of_whole, of_owned = (
        torch.nn.utils.get_total_norm([g for p, g in here if (owner_of(p) is None) == whole])
        for whole in (True, False)
    )
    owned = distributed.all_reduce_sum(of_owned.to(device).square())
    norm = (of_whole.to(device).square() + owned).sqrt()
    torch.nn.utils.clip_grads_with_norm_([p for p, _ in here], limit or math.inf, norm)
    return norm
