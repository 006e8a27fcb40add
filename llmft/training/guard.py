"""What stands between a step and the weights: numbers that are not finite, memory that is out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from llmft.api import Optimizer
from llmft.api.errors import EnvironmentFault, StageError
from llmft.api.train_settings import TrainSettings
from llmft.modeling.sharded_layers import is_here
from llmft.registry.return_checks import owner_of
from llmft.system import distributed
from llmft.training.updates import Update

_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "bad_alloc")


def may_update(update: Update, norm: float, step: int, settings: TrainSettings) -> bool:
    """Return whether the weights may be updated: loss and gradient are finite.

    Raises StageError where they are not, and `train.on_nan` says so.
    """
    value, weight = update.sums["loss"]
    loss = value / weight
    if math.isfinite(loss) and math.isfinite(norm):
        return True
    if settings.on_nan == "skip":
        return False
    what = "loss" if not math.isfinite(loss) else "gradient"
    origins = [name for names in distributed.all_gather(update.names) for name in names]
    shown = ", ".join(origins[:4]) + (f" and {len(origins) - 4} more" if origins[4:] else "")
    raise StageError(
        "E301",
        f"the {what} is not finite at step {step + 1}, before its update; rows: {shown}",
        fix="lower train.learning_rate or train.max_grad_norm, or use bf16 instead of float16",
    )


def refuse_broken_weights(model: Any, method: Optimizer[Any], step: int) -> None:
    """Raise StageError where an update before this step (from 0) has left a weight not finite."""
    for name, parameter in model.named_parameters() if step else ():
        if parameter.requires_grad and is_here(parameter) and not bool(parameter.isfinite().all()):
            raise StageError(
                "E301",
                f"{owner_of(method)} left the weight '{name}' not finite in step {step}, or before",
                fix="lower train.learning_rate, or choose another train.optim",
            )


def refuse_none_learnt(losses: Sequence[float | None]) -> None:
    """Raise StageError where every single update was skipped: no step has a loss."""
    if losses and all(loss is None for loss in losses):
        raise StageError(
            "E301",
            f"no update of {len(losses)} steps was finite, so nothing was trained",
            fix="lower train.learning_rate, or find the rows with train.on_nan: fail",
        )


def out_of_memory(
    error: BaseException, update: Update | None, step: int, settings: TrainSettings
) -> EnvironmentFault | None:
    """Return what a person needs to know of a lack of memory in a step; None for other errors."""
    if not is_out_of_memory(error):
        return None
    where = f"out of memory at step {step + 1}"
    if update is not None and (longest := _longest(update)):
        where += f"; the longest row of the step is '{longest[0]}' with {longest[1]:,} tokens"
    return EnvironmentFault(
        "E205", where, fix=f"in this order: {'; '.join(_suggested_fixes(settings))}"
    )


def not_deterministic(error: BaseException, step: int) -> StageError | None:
    """Return what a person needs to know where full_determinism has no kernel for an operation."""
    told = str(error).split(" does not have a deterministic implementation")
    if len(told) < 2:
        return None
    return StageError(
        "E236",
        f"train.full_determinism is set, and at step {step + 1} '{told[0]}' has no kernel on this"
        " device that gives the same bits each time",
        fix="remove full_determinism, or train on a CPU",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python, torch's allocators or a device say that memory is out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(told in str(error) for told in _OUT_OF_MEMORY)


def _suggested_fixes(settings: TrainSettings) -> list[str]:
    """Return the settings to lower, the harmless ones first; those that are at their end are out.

    Smaller passes and recomputed activations change no result; shorter rows do.
    """
    import torch

    size, tokens = settings.per_device_train_batch_size, settings.per_device_train_tokens
    ways = []
    if tokens:
        ways.append(f"lower train.per_device_train_tokens (now {tokens})")
    elif size > 1:
        lower = f"lower train.per_device_train_batch_size (now {size})"
        more = (
            f" and raise train.gradient_accumulation_steps (now {settings.accumulation()}) by as"
            " much"
        )
        ways.append(lower + ("" if settings.train_batch_size else more))
    if not settings.gradient_checkpointing:
        ways.append("set train.gradient_checkpointing: true")
    elif (every := settings.gradient_checkpointing_kwargs.every_n_layers) > 1:
        ways.append(f"lower train.gradient_checkpointing_kwargs.every_n_layers (now {every})")
    offloads = settings.activation_offloading or not torch.cuda.is_available()
    if settings.gradient_checkpointing and not offloads:
        ways.append("set train.activation_offloading: true")
    now = f"now {settings.max_length}" if settings.max_length else "now the model's limit"
    return [*ways, f"lower train.max_length ({now})"]


def _longest(update: Update) -> tuple[str, int] | None:
    items = [item for one in update.passes for item in one]
    lengths = [max(_lengths(item), default=0) for item in items]
    if not any(lengths):
        return None
    at = lengths.index(max(lengths))
    return update.names[at], lengths[at]


def _lengths(item: Any) -> list[int]:
    """Return how many tokens each row inside an item has; a packed item's rows are one."""
    ids = getattr(item, "input_ids", None)
    if isinstance(ids, Sequence):
        return [len(ids)]
    if isinstance(item, tuple):
        return [sum(length for one in item for length in _lengths(one))]
    if dataclasses.is_dataclass(item):
        values = [getattr(item, field.name) for field in dataclasses.fields(item)]
        return [length for value in values for length in _lengths(value) if not _plain(value)]
    return []


def _plain(value: Any) -> bool:
    """Return whether a value is a tuple of numbers, such as labels, and no row."""
    return isinstance(value, tuple) and all(isinstance(one, int | float) for one in value)
