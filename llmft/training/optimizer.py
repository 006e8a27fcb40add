"""The optimiser and the learning-rate schedule, every value passed explicitly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from llmft.api import Schedule, TrainingSpan
from llmft.api.errors import EnvironmentFault, StageError
from llmft.api.settings import TrainSettings
from llmft.recipes.training_methods import config_of, named_method
from llmft.registry.contract import Kind
from llmft.registry.registry import Registry
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


OF_BITSANDBYTES = {
    "adamw_8bit": "AdamW8bit",
    "paged_adamw_8bit": "PagedAdamW8bit",
    "paged_adamw_32bit": "PagedAdamW32bit",
    "lion_8bit": "Lion8bit",
    "lion_32bit": "Lion32bit",
    "paged_lion_8bit": "PagedLion8bit",
    "paged_lion_32bit": "PagedLion32bit",
}
"""The class of each of bitsandbytes' optimisers."""


def make_optimizer(groups: Groups, settings: TrainSettings) -> torch.optim.Optimizer:
    """Return the optimiser that the settings name, over groups as torch.optim takes them.

    Each is made as transformers' Trainer makes it, from the same settings; muon as torch has it,
    with the learning rate of an AdamW of the same update size (Liu et al. 2025, arXiv:2502.16982).
    Raises StageError where muon is to train what is no matrix.
    """
    params = [dict(group) for group in groups]
    usual: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    betas: dict[str, Any] = {"betas": (settings.adam_beta1, settings.adam_beta2)}
    name = settings.optim
    if name == "sgd":
        return torch.optim.SGD(params, **usual)
    if name == "rmsprop":
        return torch.optim.RMSprop(params, **usual)
    if name == "adagrad":
        return torch.optim.Adagrad(params, **usual)
    if name == "adafactor":
        from transformers.optimization import Adafactor

        made: torch.optim.Optimizer = Adafactor(
            params, scale_parameter=False, relative_step=False, **usual
        )
        return made
    if name == "muon":
        _refuse_other_than_matrices(params)
        return torch.optim.Muon(params, adjust_lr_fn="match_rms_adamw", **usual)
    if name.startswith("adamw_torch"):
        fused = name == "adamw_torch_fused"
        eps = settings.adam_epsilon
        return torch.optim.AdamW(params, fused=fused, eps=eps, **betas, **usual)
    try:
        import bitsandbytes
    except ImportError as error:
        raise EnvironmentFault(
            "E206", f"optim '{settings.optim}' needs bitsandbytes", fix="pip install bitsandbytes"
        ) from error
    epsilon: dict[str, Any] = {} if "lion" in name else {"eps": settings.adam_epsilon}
    cls: type[torch.optim.Optimizer] = getattr(bitsandbytes.optim, OF_BITSANDBYTES[name])
    return cls(params, **usual, **betas, **epsilon)


def _refuse_other_than_matrices(groups: Groups) -> None:
    for parameter in (p for group in groups for p in group["params"]):
        if parameter.dim() != 2:
            raise StageError(
                "E300",
                f"optim 'muon' trains matrices, and this stage trains a tensor of the shape"
                f" {list(parameter.shape)} too",
                fix="choose another train.optim, or an adapter that trains matrices only",
            )


def make_schedule(
    optimizer: torch.optim.Optimizer,
    settings: TrainSettings,
    steps: int,
    *,
    greater_is_better: bool = False,
    schedule: Schedule[Any] | None = None,
) -> LearningRates:
    """Return the learning rates of so many optimiser steps.

    schedule: default: the installed one that the settings name. greater_is_better: of the metric
    that a schedule such as `reduce_lr_on_plateau` is told.
    """
    if schedule is None:
        schedule = installed_method("schedule", settings)
    span = TrainingSpan(
        steps, warmup_of(settings, steps), settings.learning_rate, greater_is_better
    )
    return LearningRates(optimizer, schedule, span)


def installed_method(kind: Kind, settings: TrainSettings) -> Any:
    """Return the method of a kind that settings choose, where no recipe was bound to it."""
    cls = Registry.discover().method(kind, named_method(kind, settings))
    return cls(config_of(kind, settings, cls))
