"""The optimiser and the learning-rate schedule, every value passed explicitly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from llmft.api.errors import EnvironmentFault
from llmft.api.settings import TrainSettings
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


def make_optimizer(groups: Groups, settings: TrainSettings) -> torch.optim.Optimizer:
    """Return the optimiser that the settings name, over groups as torch.optim takes them."""
    params = [dict(group) for group in groups]
    if settings.optim == "sgd":
        return torch.optim.SGD(
            params, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
    options: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "eps": settings.adam_epsilon,
        "weight_decay": settings.weight_decay,
    }
    if settings.optim.startswith("adamw_torch"):
        return torch.optim.AdamW(params, fused=settings.optim == "adamw_torch_fused", **options)
    try:
        import bitsandbytes
    except ImportError as error:
        raise EnvironmentFault(
            "E206", f"optim '{settings.optim}' needs bitsandbytes", fix="pip install bitsandbytes"
        ) from error
    classes = {
        "adamw_8bit": bitsandbytes.optim.AdamW8bit,
        "paged_adamw_8bit": bitsandbytes.optim.PagedAdamW8bit,
        "paged_adamw_32bit": bitsandbytes.optim.PagedAdamW32bit,
    }
    made: torch.optim.Optimizer = classes[settings.optim](params, **options)
    return made


def make_schedule(
    optimizer: torch.optim.Optimizer, settings: TrainSettings, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the schedule that the settings name over so many optimiser steps."""
    from transformers import get_scheduler

    made: torch.optim.lr_scheduler.LRScheduler = get_scheduler(
        settings.lr_scheduler_type,
        optimizer,
        num_warmup_steps=warmup_of(settings, steps),
        num_training_steps=steps,
    )
    return made
