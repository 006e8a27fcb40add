"""The machine's name and device, and the generators that are seeded."""

from __future__ import annotations

import functools
import os
import platform
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

from llmft.system.launcher import on_cpu


def platform_name() -> str:
    """Return what Python's `platform.platform()` says on Linux, which starts a program for it."""
    if not hasattr(os, "uname") or os.uname().sysname != "Linux":
        return platform.platform()
    told = os.uname()
    libc = "".join(platform.libc_ver())
    return f"{told.sysname}-{told.release}-{told.machine}" + (f"-with-{libc}" if libc else "")


def device() -> str:
    """Return the device that models are trained on."""
    from accelerate import PartialState

    return str(PartialState(cpu=on_cpu()).device)


def on_gpu() -> bool:
    """Return whether models are trained on a GPU of torch's device type cuda."""
    return device().startswith("cuda")


def computes_in_bfloat16() -> tuple[bool, str]:
    """Return whether the device has instructions for bfloat16, and why, as a person reads it.

    Of a CPU those for whole matrices count, AMX: with others, and with none, torch may compute more
    slowly than in float32.
    """
    import torch

    if not on_gpu():
        has = _cpu_has_amx()
        return has, f"this machine computes on the CPU, which has {'AMX' if has else 'no AMX'}"
    name = torch.cuda.get_device_name()
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return True, f"{name} computes in bfloat16"
    return False, f"{name} has no instructions for bfloat16"


def _cpu_has_amx() -> bool:
    import torch

    if not hasattr(torch.cpu, "get_capabilities"):  # as in torch 2.9
        return False
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


@functools.cache
def bfloat16_over_float32() -> float:
    """Return how many times as fast the CPU multiplies matrices in bfloat16 as in float32, timed.

    It takes a tenth of a second, or as long as the slower of the two needs, once. 1,024 rows with a
    matrix of 1,024 by 1,024, the best of three each, on the threads that torch has.
    """
    import torch

    def seconds(dtype: torch.dtype) -> float:
        rows, weight = (torch.ones(1024, 1024, dtype=dtype, device="cpu") for _ in range(2))
        taken = []
        for _ in range(4):  # the first sets up
            start = time.perf_counter()
            torch.mm(rows, weight)
            taken.append(time.perf_counter() - start)
        return min(taken[1:])

    return seconds(torch.float32) / seconds(torch.bfloat16)


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # it takes no more; the last recipe's seed and a rank are above
    torch.manual_seed(seed)


@contextmanager
def full_determinism(wanted: bool) -> Iterator[None]:
    """Let torch use only kernels that give the same bits each time, for a while, where wanted.

    An operation that has none raises RuntimeError, as torch.use_deterministic_algorithms says.
    """
    if not wanted:
        yield
        return
    import torch
    import torch.utils.deterministic as memory

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as cuBLAS asks for it
    before = torch.are_deterministic_algorithms_enabled()
    filled = memory.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
