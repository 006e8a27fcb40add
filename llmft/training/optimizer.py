"""The optimiser and the learning-rate schedule, every value passed explicitly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from llmft.api import Optimizer, Schedule, TrainingSpan
from llmft.api.kinds import Kind
from llmft.api.train_settings import TrainSettings
from llmft.recipes.training_methods import config_of, named_method
from llmft.registry.registry import Registry
from llmft.registry.return_checks import optimizer_of
from llmft.training.learning_rates import LearningRates
from llmft.training.step_plan import warmup_of

Groups = Sequence[Mapping[str, Any]]
"""Parameter groups, as torch.optim takes them."""


def joined_groups(parameters: Sequence[Any], adapter: Groups | None, added: Groups) -> Groups:
    """Return the groups of all parameters, each in one of them.

    adapter: what the adapter asks for, of all parameters; None: one group. added: groups of what
    is trained beside it, which go before.
    """
    taken = {id(p) for group in added for p in group["params"]}
    own = [
        {**group, "params": [p for p in group["params"] if id(p) not in taken]}
        for group in adapter or [{"params": parameters}]
    ]
    return [*(group for group in own if group["params"]), *added]


NOT_DECAYED = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")
"""Names of parameters that no weight decay acts on, as transformers' Trainer has them."""


def decay_groups(groups: Groups, model: torch.nn.Module, settings: TrainSettings) -> Groups:
    """Return the groups with biases and norms apart, in groups of their own without weight decay.

    As transformers' Trainer decides it: by the names above, and every torch.nn.LayerNorm. A group
    that states its own weight decay keeps it for all of its parameters.
    """
    from transformers.trainer_pt_utils import get_parameter_names

    if not settings.weight_decay:
        return groups
    decayed = set(get_parameter_names(model, [torch.nn.LayerNorm], list(NOT_DECAYED)))
    apart = {id(p) for name, p in model.named_parameters() if name not in decayed}
    found: list[Mapping[str, Any]] = []
    for group in groups:
        rest = [p for p in group["params"] if id(p) in apart]
        if not rest or "weight_decay" in group:
            found.append(group)
            continue
        if own := [p for p in group["params"] if id(p) not in apart]:
            found.append({**group, "params": own})
        found.append({**group, "params": rest, "weight_decay": 0.0})
    return found


def make_optimizer(
    groups: Groups, settings: TrainSettings, method: Optimizer[Any] | None = None
) -> torch.optim.Optimizer:
    """Return the optimiser of the settings, over groups as torch.optim takes them.

    method: default: the installed one that the settings name.
    """
    if method is None:
        method = installed_method("optimizer", settings)
    made: torch.optim.Optimizer = optimizer_of(method, groups, settings)
    return made


def make_schedule(
    optimizer: torch.optim.Optimizer,
    settings: TrainSettings,
    steps: int,
    *,
    greater_is_better: bool = False,
    schedule: Schedule[Any] | None = None,
    rates_per_step: int = 1,
) -> LearningRates:
    """Return the learning rates of so many optimiser steps.

    rates_per_step: how often they move in a step, whose updates the schedule then counts.

    schedule: default: the installed one that the settings name. greater_is_better: of the metric
    that a schedule such as `reduce_lr_on_plateau` is told.
    """
    if schedule is None:
        schedule = installed_method("schedule", settings)
    updates = steps * rates_per_step
    warmup = warmup_of(settings, steps, rates_per_step)
    span = TrainingSpan(updates, warmup, settings.learning_rate, greater_is_better)
    return LearningRates(optimizer, schedule, span, rates_per_step)


def installed_method(kind: Kind, settings: TrainSettings) -> Any:
    """Return the method of a kind that settings choose, where no recipe was bound to it."""
    cls = Registry.discover().method(kind, named_method(kind, settings))
    return cls(config_of(kind, settings, cls))
