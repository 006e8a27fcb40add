"""Memory that is freed in a block is not asked of the system again, by the kernel's own count."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys

import pytest

from llmft.system.kept_memory import freed_memory_kept

PAGES = 2**14
"""64 MiB: more than glibc keeps by itself."""

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"),
    reason="the C library is not glibc",
)

# A process of its own: one in which an allocation has failed takes memory elsewhere from then on.
CHILD = f"""
import json, resource
from contextlib import nullcontext
from llmft.system.kept_memory import freed_memory_kept

size = {PAGES} * resource.getpagesize()

def pages_of(block):
    with block:
        b"x" * size
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        b"x" * size
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1])

first = pages_of(nullcontext())
kept = pages_of(freed_memory_kept())
with freed_memory_kept():
    b"x" * size
    held = resident()
given_back = held - resident()
print(json.dumps([first, kept, given_back, pages_of(nullcontext())]))
"""


def counted(**environment) -> list[int]:
    """Return the pages that the system gives for what was had, and freed, before.

    Without the block, and in it; then the pages that it gives back, and those given after it.
    """
    told = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    child = subprocess.run(
        [sys.executable, "-c", CHILD], env=told | environment, check=True, capture_output=True
    )
    return json.loads(child.stdout)


def test_what_is_freed_is_taken_again_without_the_system_and_goes_back_in_the_end():
    first, kept, given_back, after = counted()
    assert first > 2 * kept
    assert given_back > PAGES / 2
    assert after > 100


def test_what_the_environment_says_of_memory_stays():
    _, kept, _, _ = counted(MALLOC_MMAP_THRESHOLD_="131072")  # as `llmft plan` advises
    assert kept > PAGES / 8


def test_without_glibc_nothing_is_done(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    with freed_memory_kept():
        pass
