"""A sooner first step: Python's garbage collector rests while libraries and models are loaded."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collecting() -> Iterator[None]:
    """Let no garbage be looked for while the block runs.

    An import makes hundreds of thousands of objects that stay, and each collection walks over all
    of them: that is a fifth of the time that importing torch, transformers and PEFT takes.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
