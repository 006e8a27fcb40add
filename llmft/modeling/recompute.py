"""Gradient checkpointing: a layer's activations are computed again and not kept (Chen et al. 2016).

As torch.utils.checkpoint does it without reentry, for a third of its time on the host: that is
what a GPU waits for where passes are short.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import checkpoint

Put = Callable[[torch.Tensor], Callable[[], torch.Tensor]]
"""Puts a copy of a tensor elsewhere, and returns what brings it back."""


def checkpoint_layers(model: Any, every_n_layers: int = 1, put: Put | None = None) -> None:
    """Let every n-th layer of a transformers model keep its inputs only; the rest comes again.

    put: where the hidden states that a layer is given are kept; default: where they are.
    Raises ValueError where the architecture does not support it.
    """
    model.gradient_checkpointing_enable({"use_reentrant": False}, every_n_layers=every_n_layers)
    for module in model.modules():
        if hasattr(module, "_gradient_checkpointing_func"):
            module._gradient_checkpointing_func = partial(_recomputed, put) if put else recomputed


def recomputed(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return run(*args, **kwargs); what its backward pass needs is computed when that begins.

    The second time has the autocast and the random numbers of the first. Raises RuntimeError in the
    backward pass where it made other tensors than the first time.
    """
    return _recomputed(None, run, *args, **kwargs)


def _recomputed(put: Put | None, run: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return run(*args, **kwargs)
    layer = _Layer(run, args, kwargs)
    with saved_tensors_hooks(layer.number, layer.saved):
        made = run(*args, **kwargs)
    if put is not None:
        layer.put_away(put)
    return made


def to_host(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Copy a tensor of a GPU into the CPU's memory, and return what copies it back.

    Neither copy is waited for: both take their turn among the GPU's own work, so that its memory is
    given to others after the first, and read after the second.
    """
    device = tensor.device
    kept = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    kept.copy_(tensor, non_blocking=True)
    return lambda: kept.to(device, non_blocking=True)


class _Layer:
    """One run of a layer: numbers what it saves, and has the tensors when they are asked for."""

    def __init__(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]):
        self.run, self.args, self.kwargs = run, args, kwargs
        self.shapes: list[torch.Size] = []
        self.again: dict[int, torch.Tensor] = {}
        self.back: Callable[[], torch.Tensor] | None = None
        tensors = given_tensors(run, args, kwargs)
        self.device = tensors[0].device.type if tensors else "cpu"
        self.autocast: dict[str, Any] = {
            "dtype": torch.get_autocast_dtype(self.device),
            "enabled": torch.is_autocast_enabled(self.device),
            "cache_enabled": torch.is_autocast_cache_enabled(),
        }
        self.randomness = _randomness(tensors)

    def put_away(self, put: Put) -> None:
        """Keep the first tensor that is given by its place, a layer's hidden states, elsewhere.

        What is given by name, such as a mask, is one tensor for all layers. Raises RuntimeError
        where nothing is given by its place.
        """
        hidden = self.args[0] if self.args else None
        if not isinstance(hidden, torch.Tensor):
            raise RuntimeError(
                "a layer of this model is given its hidden states by name, so that they cannot be"
                " kept elsewhere (set activation_offloading: false)"
            )
        if not hidden.is_contiguous():  # it would come back in another order
            return
        back, learns = put(hidden.detach()), hidden.requires_grad
        self.back = lambda: back().requires_grad_(learns)
        self.args = self.args[1:]

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

        args = (self.back(), *self.args) if self.back is not None else self.args
        now = _randomness(given_tensors(self.run, args, self.kwargs))
        _restore(self.randomness)
        try:
            with (
                torch.enable_grad(),
                torch.autocast(self.device, **self.autocast),
                saved_tensors_hooks(keep, _unused),
            ):
                self.run(*args, **self.kwargs)
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
