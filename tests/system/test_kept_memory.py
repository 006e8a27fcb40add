"""Memory that is freed in a block is not asked of the system again, by the kernel's own count."""

from __future__ import annotations

import ctypes
import resource
import sys
from contextlib import nullcontext

import pytest
import torch

from llmft.system.kept_memory import freed_memory_kept

PAGES = 2**14
"""64 MiB: more than glibc keeps by itself."""

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"),
    reason="the C library is not glibc",
)


def pages_of(block) -> int:
    """Return how many pages the system gives for a tensor that the block had, and freed, before."""
    with block:
        torch.ones(PAGES, 1024)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(PAGES, 1024)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_what_is_freed_is_taken_again_without_the_system():
    assert pages_of(nullcontext()) > 2 * pages_of(freed_memory_kept())


def test_it_goes_back_to_the_system_in_the_end():
    with freed_memory_kept():
        torch.ones(PAGES, 1024)
        held = resident_bytes()
    assert held - resident_bytes() > PAGES * 2048
    assert pages_of(nullcontext()) > 100


def test_what_the_environment_says_of_memory_stays(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")  # as `llmft plan` advises
    assert pages_of(freed_memory_kept()) > PAGES / 8


def test_without_glibc_nothing_is_done(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    with freed_memory_kept():
        pass
