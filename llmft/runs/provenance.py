"""What a run stood on: versions, machine, seed, and hashes of everything that went into it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from llmft import __version__
from llmft.api.errors import CheckpointError
from llmft.api.train_settings import TrainSettings
from llmft.modeling.base_model import EMBEDDED, BaseModel
from llmft.recipes.binding import RESOLVED
from llmft.registry.entry_points import code_hash
from llmft.system import fsio, machine, tf32
from llmft.system.git_commit import git_commit
from llmft.system.launcher import launch

_PACKAGES = (
    "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "datasets",
    "bitsandbytes", "flash-attn", "flash-attn-3", "trl", "numpy", "pydantic", "pluggy",
)  # fmt: skip


def lock_of(seed: int, base: BaseModel, plugins: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return what a later reader needs to run the same thing again, or to see what differs."""
    import torch

    asked = base.asked.rope_scaling
    stretched = asked.model_dump(exclude_none=True) if asked else None
    return {
        "llmft": __version__,
        "code": code_hash("llmft"),  # a checkout changes under one version
        "python": sys.version.split()[0],
        **ran_on(),
        "torch_build": torch.__config__.show().split(" - ")[1].strip(),
        "seed": seed,
        # The metadata of some wheels leaves out which build it is (+cpu, +cu130).
        "packages": {name: _version(name) for name in _PACKAGES} | {"torch": torch.__version__},
        "plugins": list(plugins),
        "model": {
            "path": base.source.path,
            "sha256": model_hashes(base),
            "new_tokens": [token.text for token in base.new_tokens],
            **({"rope_scaling": stretched} if stretched else {}),
        },
        "git": git_state(),
    }


def numerics_of(train: TrainSettings) -> dict[str, Any]:
    """Return in which types a stage computes here: under autocast, and products of float32.

    The latter only where there is a GPU, in torch's words.
    """
    import torch

    products = {"float32": tf32.precision(train.tf32)} if torch.cuda.is_available() else {}
    return {"bf16": train.under_autocast, **products}


def ran_on() -> dict[str, Any]:
    """Return what the time of a run depends on beside its recipe: the machine and its processes."""
    import torch

    return {
        "platform": machine.platform_name(),
        "processor": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch_threads": torch.get_num_threads(),
        "processes": launch().count,
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


def refuse_changed_base(run: Path, base: BaseModel) -> None:
    """Raise CheckpointError where the base model is not the one that a run was made with."""
    lock = run / "lock.json"
    if not lock.is_file():  # a folder of a version that wrote none
        return
    before = fsio.read_json(lock, "put the file back as it was")["model"]["sha256"]
    path = base.source.path
    if before and not path.startswith(EMBEDDED) and not Path(path).expanduser().exists():
        seen_from = "" if Path(path).expanduser().is_absolute() else f", seen from '{Path.cwd()}'"
        raise CheckpointError(
            "E405",
            f"the run's base model is no longer at '{path}'{seen_from}",
            fix="put it back, or write where it is now as model.path into"
            f" '{run / RESOLVED}': its files are compared with the run's",
        )
    now = model_hashes(base) if before else {}
    for name in {**before, **now}:
        if before.get(name) != now.get(name) and before:
            raise CheckpointError(
                "E405",
                f"'{name}' of the model '{base.source.path}' is not what the run was made with",
                fix="put the model back as it was, or run the recipe again",
            )


def git_state() -> dict[str, Any] | None:
    """Return the commit of the working folder's repository; None where it is in none.

    Whether files were changed since is not told: to know it, git would run programs that the
    repository's configuration names.
    """
    commit = git_commit(Path())
    return None if commit is None else {"commit": commit}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
