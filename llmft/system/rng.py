"""Random numbers of their own for code that only looks on, so that training's stay as they are."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def isolated_rng() -> Iterator[None]:
    """Put Python's, numpy's and torch's generators back to where they were, after the block.

    Takes some microseconds; imports nothing, and asks a GPU only where one is used already.
    """
    torch: Any = sys.modules.get("torch")
    numpy: Any = sys.modules.get("numpy")
    python = random.getstate()
    legacy = numpy.random.get_state() if numpy else None
    cpu = torch.get_rng_state() if torch else None
    gpus = torch.cuda.get_rng_state_all() if torch and torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(python)
        if legacy is not None:
            numpy.random.set_state(legacy)
        if cpu is not None:
            torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
