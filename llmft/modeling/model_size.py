"""How large a model is at least by what its config says, before a byte of it is allocated."""

from __future__ import annotations

import os
from typing import Any

from llmft.api.errors import EnvironmentFault
from llmft.api.model_settings import ModelSource

MOST_LAYERS = 10_000
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}


def refuse_absurd_sizes(config: Any, source: ModelSource, stored: float | None = None) -> None:
    """Raise EnvironmentFault where a model can in no way be loaded on this machine.

    stored: bytes that a weight takes; default: its type's. 0: nothing is allocated, so that only a
    number of layers that nobody could build is refused.
    """
    layers = _number(config, "num_hidden_layers")
    if layers > MOST_LAYERS:
        raise _fault(source, f"has {layers:,} layers, more than {MOST_LAYERS:,}")
    needed = least_parameters(config) * (_BYTES[source.dtype] if stored is None else stored)
    there = _memory() if needed else 0
    if there and needed > there:
        raise _fault(
            source,
            f"needs {needed / 1e9:,.0f} GB at least, and this machine has {there / 1e9:,.0f} GB of"
            " memory, its devices' included",
        )


def least_parameters(config: Any) -> int:
    """Return a number of parameters that the model has at least, by its sizes."""
    hidden, layers = _number(config, "hidden_size"), _number(config, "num_hidden_layers")
    inner = _number(config, "intermediate_size") or _number(config, "n_inner")
    # One embedding; in each layer one square projection and two of the inner layer.
    return _number(config, "vocab_size") * hidden + layers * hidden * (hidden + 2 * inner)


def _number(config: Any, name: str) -> int:
    value = getattr(config, name, None)
    return value if isinstance(value, int) and value > 0 else 0


def _memory() -> int:
    """Return the bytes of memory and swap here, and of every device; 0 where nobody tells."""
    import torch

    try:
        here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
    devices = range(torch.cuda.device_count())
    return here + _swap() + sum(torch.cuda.get_device_properties(d).total_memory for d in devices)


def _swap() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = [line.split() for line in file if line.startswith("SwapTotal")]
    except OSError:
        return 0
    return int(lines[0][1]) * 1024 if lines else 0


def _fault(source: ModelSource, what: str) -> EnvironmentFault:
    return EnvironmentFault(
        "E205",
        f"the model '{source.path}' {what}, by its config.json",
        fix="check config.json, use a smaller model, or store it in 4 bits",
    )
