"""The machine's name and device, and the generators that are seeded."""

from __future__ import annotations

import os
import platform
import random

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


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
