"""Memory that a step frees stays with the process, for the next step to take.

A step takes and frees the same gigabytes again and again. The C library gives large pieces back to
the system each time, and the system clears every page before it hands it out anew.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# mallopt(3), glibc's numbers.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER, _LARGE = -1, 2**30
_MMAP_USUAL = 2**25
"""Up to where glibc by itself raises what it calls large, in bytes."""


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let pieces of up to a GiB that are freed stay with the process while the block runs.

    The most that is held at a time is hardly more: what is kept is what was needed before. All of
    it goes back to the system at the block's end. Does nothing where the C library is not glibc, or
    where the environment tells it what to keep.
    """
    library: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    told = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if told or not (hasattr(library, "mallopt") and hasattr(library, "malloc_trim")):
        yield
        return
    library.mallopt(_TRIM_THRESHOLD, _NEVER)
    library.mallopt(_MMAP_THRESHOLD, _LARGE)
    try:
        yield
    finally:
        library.mallopt(_MMAP_THRESHOLD, _MMAP_USUAL)
        library.mallopt(_TRIM_THRESHOLD, 2 * _MMAP_USUAL)
        library.malloc_trim(0)
