"""Computes optimiser steps on a model without numbers, as the loop would, for the ledger to see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from llmft.api import Callback, Objective, Optimizer
from llmft.api.train_settings import TrainSettings
from llmft.modeling.noisy_embeddings import noisy_embeddings
from llmft.modeling.sharded_layers import is_here, owner_of
from llmft.planning.memory_tracker import CALLBACKS, GRADIENTS, OPTIMIZER, MemoryTracker
from llmft.planning.processes import ALONE, Processes
from llmft.registry.return_checks import bytes_of_callback
from llmft.system import distributed
from llmft.training import modes
from llmft.training.optimizer import make_optimizer


def train_steps(
    model: Any,
    batches: Sequence[Sequence[Any]],
    objective: Objective,
    settings: TrainSettings,
    groups: Sequence[Mapping[str, Any]] | None,
    method: Optimizer[Any],
    memory: MemoryTracker,
    evaluate: Callable[[], None] = lambda: None,
    callbacks: Sequence[Callback[Any]] = (),
    processes: Processes = ALONE,
) -> list[int]:
    """Train on each of the batches, while the ledger is entered; return the FLOPs of each pass.

    method: makes the optimiser. evaluate: what is computed between two steps, with the optimiser's
    state there. callbacks: each says what it holds. processes: that sum their gradients. A
    checkpoint is written from where the tensors are, so that it takes nothing more.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    owned = [p for p in trained if is_here(p)]
    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(lambda p: _count_gradient(p, memory))
    memory.hold(CALLBACKS, (bytes_of_callback(one, p) for one in callbacks for p in trained))
    model.train()
    groups = [
        {**group, "params": [p for p in group["params"] if is_here(p)]}
        for group in groups or [{"params": trained}]
    ]
    optimizer = _optimizer(groups, settings, method, memory)
    # The heaviest pass meets the state that an earlier step left, and under accumulation gradients.
    for parameter in owned:
        parameter.grad = torch.zeros_like(parameter)
        memory.add(parameter.grad, GRADIENTS)
    passes = []
    for batch in batches:
        _update(optimizer, memory)
        if settings.accumulation(processes.count) == 1:
            for parameter in trained:
                parameter.grad = None
        before = memory.flops[memory.phase]
        noise = noisy_embeddings(model, settings.neftune_noise_alpha)
        casts = torch.autocast(
            "cpu",
            torch.bfloat16,
            enabled=settings.under_autocast,
            cache_enabled=not (settings.shard_base and processes.several),
        )
        with noise, casts:
            loss, _ = objective.loss(model, batch)
        torch.autograd.backward(loss * (1 / objective.weight(batch)))
        del loss
        passes.append(memory.flops[memory.phase] - before)
        if processes.several:
            together = [p for p in trained if owner_of(p) is None]
            distributed.sum_gradients(together, lambda whole: whole)
        torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm or 1e30)
    _update(optimizer, memory)
    for parameter in trained:
        parameter.grad = None
    evaluate()
    model.eval()
    return passes


def _count_gradient(parameter: torch.Tensor, memory: MemoryTracker) -> None:
    memory.add(parameter.grad, GRADIENTS)
    if not is_here(parameter):  # it is sent to the weight's owner
        parameter.grad = None


def _update(optimizer: torch.optim.Optimizer | None, memory: MemoryTracker) -> None:
    if optimizer is not None:
        modes.to_training(optimizer)
        with memory.making(OPTIMIZER):
            optimizer.step()


def _optimizer(
    groups: Sequence[Mapping[str, Any]],
    settings: TrainSettings,
    method: Optimizer[Any],
    memory: MemoryTracker,
) -> torch.optim.Optimizer | None:
    """Return the optimiser, or None and its state counted where it says itself how much that is."""
    method = method.planned()
    parameters = [p for group in groups for p in group["params"]]
    sizes = [size for p in parameters if (size := method.state_bytes(p)) is not None]
    if len(sizes) < len(parameters):
        with memory.making(OPTIMIZER):  # adagrad has its state from the start
            return make_optimizer(groups, settings, method)
    memory.hold(OPTIMIZER, sizes)
    return None
