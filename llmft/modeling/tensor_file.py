"""Tensors that were computed once, in a file that says what from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llmft.system.fsio import write_bytes

if TYPE_CHECKING:
    import torch


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], key: str) -> None:
    """Write tensors whole into a safetensors file; `key` says what they were computed from."""
    from safetensors.torch import save

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(whole, {"key": key, "sha256": _digest(whole)}))


def load_tensors(path: Path, key: str) -> dict[str, torch.Tensor] | None:
    """Return the tensors of a file, or None where it is not there, damaged or has another key."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError:
        return None
    return found if (told.get("key"), told.get("sha256")) == (key, _digest(found)) else None


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a SHA-256 over the names and bytes of tensors on the CPU."""
    import hashlib

    import torch

    hasher = hashlib.sha256()
    for name in sorted(tensors):
        hasher.update(f"{name} {tuple(tensors[name].shape)}".encode())
        hasher.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()
