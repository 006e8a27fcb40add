"""What a run stands on: package versions, the machine, its accelerator; no torch is imported."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from llmft import __version__
from llmft.system import processes
from llmft.system.machine import platform_name

_GIB = 2**30
_FALLBACK = ("torch", "transformers", "peft", "accelerate", "datasets", "trl", "pydantic")


def requirements() -> list[str]:
    """Return what llmft declares that it needs, as `name>=1,<2`, for this platform."""
    try:
        declared = metadata.requires("llmft") or []
    except metadata.PackageNotFoundError:  # a checkout on the path, not installed
        return list(_FALLBACK)
    return [line.partition(";")[0].strip() for line in declared if _applies(line)]


def versions() -> dict[str, str | None]:
    """Return the installed version of each package llmft needs; None where it is missing."""
    found: dict[str, str | None] = {"llmft": _version("llmft") or __version__}
    for line in requirements():
        name = re.match(r"[\w.-]*", line)
        if name:
            found[name[0]] = _version(name[0])
    return found


def machine(folder: Path) -> dict[str, Any]:
    """Return Python, platform, cores, memory and the free disk at a folder."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform_name(),
        "cores": cores,
        "memory_gib": _memory(),
        "disk_free_gib": round(shutil.disk_usage(folder).free / _GIB, 1),
    }


def accelerators() -> list[str]:
    """Return the NVIDIA devices that the driver's own tool names; empty where there is none."""
    asked = ("--query-gpu=name,memory.total", "--format=csv,noheader")
    answer = processes.answer_of("nvidia-smi", *asked, seconds=10)
    return [line.strip() for line in (answer or "").splitlines() if line.strip()]


def torch_devices() -> dict[str, Any]:
    """Return what torch itself can use; imports torch, which takes seconds."""
    import torch

    return {
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda_version": torch.version.cuda,
        "bfloat16": torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        "threads": torch.get_num_threads(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _applies(requirement: str) -> bool:
    marker = requirement.partition(";")[2]
    if "extra" in marker:
        return False
    # The one marker that our own metadata has; a general reading of markers is pip's business.
    return not ("sys_platform" in marker and "darwin" in marker and sys.platform == "darwin")


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB, 1)
    except (ValueError, OSError, AttributeError):
        return None
