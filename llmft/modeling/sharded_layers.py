"""A frozen base divided among processes: each keeps a share of every layer, and a whole one in use.

As FSDP's full_shard and ZeRO's third stage do (Rajbhandari et al. 2020, section 5.3), for weights
that are not trained: a layer is gathered where it is computed, forward and backward, and given up
after it. Whatever type weights are stored in, they travel as bytes, so that a quantised base is
divided like any other. Embeddings, the output layer and what is trained stay whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from llmft.system import distributed

ATTRIBUTE = "llmft_sharded_layers"
"""Where a model keeps its `ShardedLayers`."""
_ALIGNED = 16  # bytes: where kernels like a tensor to begin


def shard(model: Any, device: str | torch.device) -> None:
    """Move a model to a device, of each layer's frozen weights this process's share only.

    model: on the CPU, the same in all processes, which call this alike. From here on all of them
    have to compute the same layers in the same order. Raises ValueError where a model does not say
    what its layers are.
    """
    layers = list(_layers(model))
    if not layers:
        raise ValueError("the architecture does not say which modules are its layers")
    divided = [_Layer(layer, n, torch.device(device)) for n, layer in enumerate(layers)]
    model.to(device)
    sharded = ShardedLayers(divided)
    for number, layer in enumerate(layers):
        sharded.watch(layer, number)
    for one in {model, _base(model)}:
        setattr(one, ATTRIBUTE, sharded)


def is_sharded(model: Any) -> bool:
    """Return whether a model's layers are divided among processes."""
    return hasattr(model, ATTRIBUTE)


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _layers(model: Any) -> Iterator[nn.Module]:
    """Yield the modules that transformers never splits, those within others left out."""
    base = _base(model)
    kinds = set(getattr(base, "_no_split_modules", None) or ())
    within: set[int] = set()
    for module in base.modules():
        if type(module).__name__ in kinds and id(module) not in within:
            within.update(map(id, module.modules()))
            yield module


class ShardedLayers:
    """The layers of one model: which of them are whole just now, and which come next.

    While one is computed the next is on its way, so that at most two are whole, and in the backward
    pass three for the moment in which one takes over from the other.
    """

    def __init__(self, layers: list[_Layer]) -> None:
        self.layers = layers
        self.backward: int | None = None

    def watch(self, module: nn.Module, number: int) -> None:
        """Gather a layer before its module computes, and give it up when that is done."""

        def before(*_: Any) -> None:
            self._enter(number)

        def after(_: Any, __: Any, made: Any) -> None:
            self._leave(number, made)

        module.register_forward_pre_hook(before, prepend=True)
        module.register_forward_hook(after)

    def _enter(self, number: int) -> None:
        self.layers[number].gather()
        if self.backward is not None:  # it is computed again, for its own backward pass
            return
        if number + 1 < len(self.layers):
            self.layers[number + 1].start()

    def _leave(self, number: int, made: Any) -> None:
        if self.backward is not None:
            return
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda _: self._go_back(number))  # type: ignore[no-untyped-call]
        self.layers[number].give_up()

    def _go_back(self, number: int) -> None:
        """Gather a layer whose output has its gradient now; those after it are done with."""
        if self.backward is None:
            # As torch's own FSDP asks to be told of a backward pass's end.
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(self._end)
        before, self.backward = self.backward, number
        self.layers[number].gather()
        if before is not None and before != number:
            self.layers[before].give_up()
        if number:
            self.layers[number - 1].start()

    def _end(self) -> None:
        self.backward = None
        for layer in self.layers:
            layer.give_up()


class _Layer:
    """The frozen weights of one layer as one row of bytes, of which each process has a share."""

    def __init__(self, module: nn.Module, number: int, device: torch.device) -> None:
        self.number = number
        self.parameters = [p for p in dict.fromkeys(module.parameters()) if not p.requires_grad]
        count = distributed.count()
        self.places, end = list[int](), 0
        for parameter in self.parameters:
            self.places.append(end)
            end += -(-parameter.nbytes // _ALIGNED) * _ALIGNED
        self.size = -(-end // (count * _ALIGNED)) * count * _ALIGNED
        self.whole = torch.empty(self.size, dtype=torch.uint8, device=device)
        self.views = [
            self._view(*placed) for placed in zip(self.parameters, self.places, strict=True)
        ]
        for parameter, view in zip(self.parameters, self.views, strict=True):
            view.copy_(parameter.data)
        share = self.size // count
        self.share = self.whole[distributed.rank() * share :][:share].clone()
        # Where a weight is not there it has its shape and no numbers: to read them is a mistake.
        self.absent = [_no_numbers(view) for view in self.views]
        self.coming: distributed.Gathering | None = None
        self.is_whole = True
        self.give_up()
        for parameter in self.parameters:
            _move_state(parameter, device)

    def _view(self, parameter: torch.Tensor, place: int) -> torch.Tensor:
        bytes_ = self.whole[place : place + parameter.nbytes]
        return bytes_.view(parameter.dtype).view(parameter.shape)

    def start(self) -> None:
        """Let the other processes' shares come; the result is not waited for."""
        if self.is_whole or self.coming is not None:
            return
        self.whole.untyped_storage().resize_(self.size)
        self.coming = distributed.all_gather_bytes(self.whole, self.share, self.number)

    def gather(self) -> None:
        """Make the layer whole."""
        if self.is_whole:
            return
        self.start()
        assert self.coming is not None
        self.coming.wait()
        self.coming, self.is_whole = None, True
        self._show(self.views)

    def give_up(self) -> None:
        """Let go of all but this process's share; of what is on its way, when it has come."""
        if self.coming is not None:
            self.gather()
        if self.is_whole:
            self._show(self.absent)
            self.whole.untyped_storage().resize_(0)
            self.is_whole = False

    def _show(self, tensors: list[torch.Tensor]) -> None:
        # Not by assignment in place: autograd goes by how often a tensor was written to.
        for parameter, tensor in zip(self.parameters, tensors, strict=True):
            parameter.data = tensor


def _no_numbers(like: torch.Tensor) -> torch.Tensor:
    one = torch.zeros(1, dtype=like.dtype, device=like.device)
    if like.dtype.is_floating_point:
        one.fill_(float("nan"))
    return one.expand(like.shape) if like.dim() else one.view(())


def _move_state(parameter: Any, device: torch.device) -> None:
    """Move the scales of a weight in 4 bits, which are no parameters, to where it is computed."""
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        state.to(device)
