"""What optimisers are made of: copies of the groups, the usual settings, and other libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from llmft.api import EnvironmentFault, TrainSettings

Groups = Sequence[Mapping[str, Any]]


def usual(train: TrainSettings) -> dict[str, Any]:
    """Return what every optimiser is given: the peak rate and the weight decay."""
    return {"lr": train.learning_rate, "weight_decay": train.weight_decay}


def of_adam(train: TrainSettings) -> dict[str, Any]:
    """Return what every AdamW is given beside that."""
    return {"betas": (train.adam_beta1, train.adam_beta2), "eps": train.adam_epsilon}


def copied(groups: Groups) -> list[dict[str, Any]]:
    """Return the groups as an optimiser may keep and change them."""
    return [dict(group) for group in groups]


def library(method: str, module: str) -> Any:
    """Return another library's module; EnvironmentFault (E206) where it cannot be imported."""
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ImportError as error:
        raise EnvironmentFault(
            "E206", f"optim '{method}' needs {package}", fix=f"pip install {package}"
        ) from error
