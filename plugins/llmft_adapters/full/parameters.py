"""Which of a model's weights are trained, and what of a recipe's choice fits none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from llmft.api import Refusal


def trained_parameters(model: Any, config: Any) -> list[Any]:
    """Return the weights that are trained, each once, in the model's order."""
    names = _names(model)
    return [parameter for parameter, known in names.values() if _is_trained(known, model, config)]


def misfits(model: Any, config: Any) -> Iterable[Refusal]:
    """Yield what of the choice fits no weight of this model, or leaves none to train."""
    every = [name for _, known in _names(model).values() for name in known]
    wrong = False
    for key in ("trainable_parameters", "freeze_parameters"):
        for index, pattern in enumerate(getattr(config, key) or ()):
            if not any(_matches(name, pattern) for name in every):
                wrong = True
                yield (
                    (key, index),
                    f"'{pattern}' matches no weight of this model",
                    _near(pattern, every),
                )
    layers = _layers(every)
    asked = config.freeze_trainable_layers
    if asked is not None and asked > layers:
        wrong = True
        what = f"this model has {layers} layers, and not {asked}"
        yield ("freeze_trainable_layers",), what, f"write at most {layers}, or drop it for all"
    if not wrong and not trained_parameters(model, config):
        keys = ("freeze_parameters", "trainable_parameters", "freeze_trainable_layers")
        key = next(name for name in keys if getattr(config, name))
        yield (key,), "no weight is left that is trained", "freeze less"
    if config.pure_bf16:
        wide = sorted(
            {str(p.dtype).removeprefix("torch.") for p in trained_parameters(model, config)}
            - {"bfloat16"}
        )
        if wide:
            what = f"the weights have the type {wide[0]}, so there is nothing pure about bfloat16"
            yield ("pure_bf16",), what, "write model.dtype: bfloat16, or drop pure_bf16"


def _names(model: Any) -> Mapping[int, tuple[Any, list[str]]]:
    """Return each weight with its names: one that is shared, such as a tied output layer, has two.

    Those that are no floating-point numbers are left out.
    """
    found: dict[int, tuple[Any, list[str]]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.is_floating_point():
            found.setdefault(id(parameter), (parameter, []))[1].append(name)
    return found


def _is_trained(names: Sequence[str], model: Any, config: Any) -> bool:
    def named(patterns: Sequence[str] | None) -> bool:
        return any(_matches(name, pattern) for name in names for pattern in patterns or ())

    if named(config.freeze_parameters):
        return False
    wanted = config.trainable_parameters
    if wanted is not None and not named(wanted):
        return False
    if config.freeze_trainable_layers is None:
        return True
    numbers = [number for name in names if (number := _layer(name)) is not None]
    if not numbers:
        return wanted is not None
    last: int = config.freeze_trainable_layers
    return numbers[0] >= _layers_of(model) - last


def _layers_of(model: Any) -> int:
    return _layers([name for name, _ in model.named_parameters()])


def _layers(names: Iterable[str]) -> int:
    numbers = [number for name in names if (number := _layer(name)) is not None]
    return max(numbers, default=-1) + 1


def _layer(name: str) -> int | None:
    """Return the number in a weight's name of the layer that it is in; None outside of them."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None


def _matches(name: str, pattern: str) -> bool:
    """Return whether a pattern, a glob too, is a name or a run of whole parts of it.

    'lm_head' and 'layers.1' are such; 'layers.1' is no part of 'layers.10.mlp'.
    """
    parts = name.split(".")
    if not any(mark in pattern for mark in "*?["):
        return f".{pattern}." in f".{name}."
    runs = (
        ".".join(parts[start:end])
        for start in range(len(parts))
        for end in range(start + 1, len(parts) + 1)
    )
    return any(fnmatchcase(run, pattern) for run in runs)


def _near(pattern: str, names: Iterable[str]) -> str:
    kinds = list(dict.fromkeys(part for n in names for part in n.split(".") if not part.isdigit()))
    near = get_close_matches(pattern, kinds, n=1)
    return f"did you mean '{near[0]}'?" if near else f"there are {', '.join(kinds[:30])}"
