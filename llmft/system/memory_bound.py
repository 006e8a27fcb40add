"""A bound on the memory that a block of code may take beyond what the process has."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_ROOM = 1024  # MB that allocators and threads take in one piece, whatever they use of it


@contextmanager
def memory_bound(megabytes: int) -> Iterator[None]:
    """Let what the block allocates beyond so much raise MemoryError; only Linux can do that.

    A file of kilobytes may unpack to gigabytes, and the library that unpacks it asks for them.
    """
    if sys.platform != "linux":
        yield
        return
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + (megabytes + _ROOM) * 2**20
    bounds = [bound for bound in (limit, *before) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
