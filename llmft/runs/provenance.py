"""What a run stood on: versions, machine, seed, and hashes of everything that went into it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from llmft import __version__
from llmft.modeling.base_model import BaseModel
from llmft.registry.entry_points import code_hash
from llmft.system import fsio
from llmft.system.launcher import launch

_PACKAGES = (
    "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "datasets",
    "bitsandbytes", "trl", "numpy", "pydantic", "pluggy",
)  # fmt: skip


def lock_of(seed: int, base: BaseModel, plugins: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return what a later reader needs to run the same thing again, or to see what differs."""
    import torch

    return {
        "llmft": __version__,
        "code": code_hash("llmft"),  # a checkout changes under one version
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch_threads": torch.get_num_threads(),
        "processes": launch().count,
        "torch_build": torch.__config__.show().split(" - ")[1].strip(),
        "seed": seed,
        "packages": {name: _version(name) for name in _PACKAGES},
        "plugins": list(plugins),
        "model": {"path": base.source.path, "sha256": model_hashes(base)},
        "git": git_state(),
    }


def model_hashes(base: BaseModel) -> dict[str, str]:
    """Return the SHA-256 of each file of a local model folder; a hub model has its commit."""
    folder = Path(base.path)
    if not folder.is_dir():
        return {}
    kept = (".safetensors", ".json", ".model", ".txt", ".jinja")
    return {
        file.name: fsio.sha256(file)
        for file in sorted(folder.iterdir())
        if file.is_file() and file.suffix in kept
    }


def git_state() -> dict[str, Any] | None:
    """Return the commit of the working folder's repository, and whether it is clean."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "clean": not _git("status", "--porcelain", "--untracked-files=no")}


def _git(*words: str) -> str | None:
    quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", *words], capture_output=True, text=True, timeout=5, check=True, env=quiet
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
