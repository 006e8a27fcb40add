"""Gradient checkpointing: a layer's activations are computed again and not kept (Chen et al. 2016).

As torch.utils.checkpoint does it without reentry, for a third of its time on the host: that is
what a GPU waits for where passes are short.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import checkpoint


def checkpoint_layers(model: Any, every_n_layers: int = 1) -> None:
    """Let every n-th layer of a transformers model keep its inputs only; the rest comes again.

    Raises ValueError where the architecture does not support it.
    """
    model.gradient_checkpointing_enable({"use_reentrant": False}, every_n_layers=every_n_layers)
    for module in model.modules():
        if hasattr(module, "_gradient_checkpointing_func"):
            module._gradient_checkpointing_func = recomputed


def recomputed(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return run(*args, **kwargs); what its backward pass needs is computed when that begins.

    The second time has the autocast and the random numbers of the first. Raises RuntimeError in the
    backward pass where it made other tensors than the first time.
    """
    if not torch.is_grad_enabled():
        return run(*args, **kwargs)
    layer = _Layer(run, args, kwargs)
    with saved_tensors_hooks(layer.number, layer.saved):
        return run(*args, **kwargs)


class _Layer:
    """One run of a layer: numbers what it saves, and has the tensors when they are asked for."""

    def __init__(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]):
        self.run, self.args, self.kwargs = run, args, kwargs
        self.shapes: list[torch.Size] = []
        self.again: dict[int, torch.Tensor] = {}
        self.tensors = given_tensors(run, args, kwargs)
        self.device = self.tensors[0].device.type if self.tensors else "cpu"
        self.autocast: dict[str, Any] = {
            "dtype": torch.get_autocast_dtype(self.device),
            "enabled": torch.is_autocast_enabled(self.device),
            "cache_enabled": torch.is_autocast_cache_enabled(),
        }
        self.randomness = _randomness(self.tensors)

    def number(self, tensor: torch.Tensor) -> int:
        """Note that the layer saves a tensor, and return its number."""
        self.shapes.append(tensor.shape)
        return len(self.shapes) - 1

    def saved(self, number: int) -> torch.Tensor:
        """Return the tensor of a number; the first that is asked for computes them all."""
        if number not in self.again:
            self._compute()
        return self.again.pop(number)

    def _compute(self) -> None:
        saved: list[torch.Tensor] = []

        def keep(tensor: torch.Tensor) -> None:
            saved.append(tensor.detach())  # the tensor itself would hold the graph that saves it

        now = _randomness(self.tensors)
        _restore(self.randomness)
        try:
            with (
                torch.enable_grad(),
                torch.autocast(self.device, **self.autocast),
                saved_tensors_hooks(keep, _unused),
            ):
                self.run(*self.args, **self.kwargs)
        finally:
            _restore(now)
        if [tensor.shape for tensor in saved] != self.shapes:
            raise RuntimeError(
                "a checkpointed layer saved other tensors when it was computed again:"
                f" {len(self.shapes)} the first time, {len(saved)} the second; layers have to do"
                " the same each time (set gradient_checkpointing: false)"
            )
        self.again = dict(enumerate(saved))


def _unused(_: Any) -> torch.Tensor:
    raise AssertionError("there is no backward pass through what was computed again")


def given_tensors(
    run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[torch.Tensor]:
    """Return the tensors that a layer is given, by place or by name; transformers binds names."""
    bound = (*getattr(run, "args", ()), *getattr(run, "keywords", {}).values())
    return [each for each in (*args, *kwargs.values(), *bound) if isinstance(each, torch.Tensor)]


def _randomness(tensors: list[torch.Tensor]) -> tuple[Any, Any, Any]:
    module = getattr(torch, tensors[0].device.type, None) if tensors else None
    if not getattr(module, "_initialized", False):  # as torch's own: a device is not begun for it
        return torch.get_rng_state(), [], []
    return (torch.get_rng_state(), *checkpoint.get_device_states(*tensors))


def _restore(states: tuple[Any, Any, Any]) -> None:
    cpu, devices, of_devices = states
    torch.set_rng_state(cpu)
    if devices:
        checkpoint.set_device_states(devices, of_devices)
