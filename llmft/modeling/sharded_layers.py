"""A base divided among processes: each keeps a share of every layer, and a whole one in use.

As FSDP's full_shard and ZeRO's third stage do (Rajbhandari et al. 2020, section 5.3): a layer is
gathered where it is computed, forward and backward, and given up after it.

Frozen weights are one row of bytes for each layer, cut into equal shares, so that a quantised base
is divided like any other. Of weights that are trained each has one process as its owner, which
alone has its gradient's sum and its optimiser's state: whatever an optimiser does with a matrix, it
has the whole of it. Embeddings, the output layer and an adapter stay whole in each process.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from llmft.system import distributed

ATTRIBUTE = "llmft_sharded_layers"
"""Where a model keeps its `ShardedLayers`."""
_OWNER = "llmft_owner"
"""Where a trained weight that is divided keeps its owner's rank."""
_WRITE_OUTSIDE = ("rwkv",)
_ALIGNED = 16  # bytes: where kernels like a tensor to begin


def shard(model: Any, device: str | torch.device, *, trained: bool = False) -> None:
    """Move a model to a device, of each layer's frozen weights this process's share only.

    model: on the CPU, the same in all processes, which call this alike. trained: divide the layers'
    trained weights too. From here on all of them have to compute the same layers in the same order.
    """
    layers = layers_of(model)
    divisible = divisible_parameters(model)
    owners = give_owners(divisible, distributed.count()) if trained else {}
    divided = [
        _Layer(parameters, number, owners, torch.device(device))
        for number, parameters in enumerate(divisible)
    ]
    model.to(device)
    sharded = ShardedLayers(divided)
    for number, layer in enumerate(layers):
        sharded.watch(layer, number)
    for one in {model, _base(model)}:
        setattr(one, ATTRIBUTE, sharded)


def is_sharded(model: Any) -> bool:
    """Return whether a model's layers are divided among processes."""
    return hasattr(model, ATTRIBUTE)


def owner_of(parameter: torch.Tensor) -> int | None:
    """Return the process that has a trained weight; None: all have it."""
    owner: int | None = getattr(parameter, _OWNER, None)
    return owner


def is_here(parameter: torch.Tensor) -> bool:
    """Return whether this process has a trained weight, its gradient and its optimiser's state."""
    return owner_of(parameter) in (None, distributed.rank())


def collect_gradients(model: Any) -> None:
    """Give each divided weight's owner the gradient that all processes have summed since the last.

    Elsewhere it has none.
    """
    for layer in getattr(model, ATTRIBUTE).layers if is_sharded(model) else ():
        for weight in layer.trained:
            weight.collect()


def give_owners(divisible: list[list[nn.Parameter]], count: int) -> dict[int, int]:
    """Give each trained weight an owner among so many processes, and return them by its id.

    They own about as many numbers each.
    """
    held = [0] * count
    found: dict[int, int] = {}
    for parameter in (p for layer in divisible for p in layer if p.requires_grad):
        owner = held.index(min(held))
        found[id(parameter)] = owner
        setattr(parameter, _OWNER, owner)
        held[owner] += parameter.numel()
    return found


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def layers_of(model: Any) -> list[nn.Module]:
    """Return the modules that transformers never splits, those within others left out.

    Empty where an architecture does not say what its layers are.
    """
    base = _base(model)
    kinds = set(getattr(base, "_no_split_modules", None) or ())
    within: set[int] = set()
    found: list[nn.Module] = []
    for module in base.modules():
        if type(module).__name__ in kinds and id(module) not in within:
            within.update(map(id, module.modules()))
            found.append(module)
    return found


def misfit(model: Any) -> str:
    """Return why a model cannot be divided; '' where it can."""
    if not layers_of(model):
        return "its code names no layers (_no_split_modules)"
    if _base(model).config.model_type in _WRITE_OUTSIDE:
        return "it writes to their weights from outside of them"
    return ""


def divisible_parameters(model: Any) -> list[list[nn.Parameter]]:
    """Return for each layer the parameters that it has, and nothing else of the model."""
    layers = layers_of(model)
    inside = {id(module) for layer in layers for module in layer.modules()}
    others = (module for module in model.modules() if id(module) not in inside)
    outside = {id(p) for module in others for p in module._parameters.values()}
    places = Counter(id(p) for layer in layers for p in layer.parameters())  # each once a layer
    return [
        [p for p in layer.parameters() if places[id(p)] == 1 and id(p) not in outside]
        for layer in layers
    ]


class ShardedLayers:
    """The layers of one model: which of them are whole just now, and which come next.

    While one is computed the next is on its way, so that at most two are whole.
    """

    def __init__(self, layers: list[_Layer]) -> None:
        self.layers = layers
        self.backward: int | None = None
        self.hooks: list[Any] = []

    def watch(self, module: nn.Module, number: int) -> None:
        """Gather a layer before its module computes, and give it up when that is done."""

        def before(*_: Any) -> None:
            self._enter(number)

        def after(_: Any, __: Any, made: Any) -> None:
            self._leave(number, made)

        self.hooks.append(module.register_forward_pre_hook(before, prepend=True))
        self.hooks.append(module.register_forward_hook(after))

    @property
    def divides(self) -> bool:
        """Whether any weight is divided."""
        return any(layer.parameters or layer.trained for layer in self.layers)

    def make_whole(self) -> None:
        """End the division: the first process has all weights on the CPU; others cannot be used.

        All processes call it.
        """
        for hook in self.hooks:
            hook.remove()
        for layer in self.layers:
            layer.gather()
            if distributed.rank() == 0:
                layer.keep_on_cpu()
            layer.give_up()

    def _enter(self, number: int) -> None:
        self.layers[number].gather()
        if self.backward is not None:  # it is computed again, for its own backward pass
            return
        if number + 1 < len(self.layers):
            self.layers[number + 1].start()

    def _leave(self, number: int, made: Any) -> None:
        if self.backward is not None:
            return
        for tensor in tree_leaves(made):
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
            self.layers[before].reduce()
            self.layers[before].give_up()
        if number:
            self.layers[number - 1].start()

    def _end(self) -> None:
        if self.backward is not None:
            self.layers[self.backward].reduce()
        self.backward = None
        for layer in self.layers:
            layer.give_up()


class _Layer:
    """One layer's weights: the frozen ones as a row of bytes, and those that are trained."""

    def __init__(
        self,
        parameters: list[nn.Parameter],
        number: int,
        owners: dict[int, int],
        device: torch.device,
    ) -> None:
        self.number = number
        self.trained = [_Trained(p, owners[id(p)], device) for p in parameters if id(p) in owners]
        self.parameters = [p for p in parameters if not p.requires_grad]
        count = distributed.count()
        self.places, end = list[int](), 0
        for parameter in self.parameters:
            self.places.append(end)
            end += -(-parameter.nbytes // _ALIGNED) * _ALIGNED
        self.size = -(-end // (count * _ALIGNED)) * count * _ALIGNED
        self.whole = torch.empty(self.size, dtype=torch.uint8, device=device)
        placed = zip(self.parameters, self.places, strict=True)
        self.views = [self._view(parameter, place) for parameter, place in placed]
        for parameter, view in zip(self.parameters, self.views, strict=True):
            view.copy_(parameter.data)
        share = self.size // count
        self.share = self.whole[distributed.rank() * share :][:share].clone()
        # Where a weight is not there it has its shape and no numbers: to read them is a mistake.
        self.absent = [_no_numbers(view) for view in self.views]
        self.coming: list[distributed.Coming] | None = None
        self.is_whole = True
        self.give_up()
        for parameter in self.parameters:
            _move_state(parameter, device)

    def _view(self, parameter: torch.Tensor, place: int) -> torch.Tensor:
        bytes_ = self.whole[place : place + parameter.nbytes]
        return bytes_.view(parameter.dtype).view(parameter.shape)

    def start(self) -> None:
        """Let what other processes have come; the result is not waited for."""
        if self.is_whole or self.coming is not None:
            return
        self.coming = []
        if self.parameters:
            self.whole.untyped_storage().resize_(self.size)
            self.coming.append(distributed.all_gather_bytes(self.whole, self.share, self.number))
        self.coming += [weight.start(self.number) for weight in self.trained]

    def gather(self) -> None:
        """Make the layer whole."""
        if self.is_whole:
            return
        self.start()
        for coming in self.coming or ():
            coming.wait()
        self.coming, self.is_whole = None, True
        self._show(self.views)
        for weight in self.trained:
            weight.show()

    def give_up(self) -> None:
        """Let go of all but this process's share; of what is on its way, when it has come."""
        if self.coming is not None:
            self.gather()
        if self.is_whole:
            self._show(self.absent)
            self.whole.untyped_storage().resize_(0)
            for weight in self.trained:
                weight.give_up()
            self.is_whole = False

    def reduce(self) -> None:
        """Sum the gradients of a backward pass that has been through the layer, at their owners."""
        for weight in self.trained:
            weight.reduce()

    def keep_on_cpu(self) -> None:
        """Let the weights, which are whole, be copies on the CPU from now on."""
        self.absent = [view.to("cpu", copy=True) for view in self.views]
        for weight in self.trained:
            weight.keep_on_cpu()

    def _show(self, tensors: list[torch.Tensor]) -> None:
        # Not by assignment in place: autograd goes by how often a tensor was written to.
        for parameter, tensor in zip(self.parameters, tensors, strict=True):
            parameter.data = tensor


class _Trained:
    """A trained weight of a layer: with its owner always, and elsewhere while it is computed."""

    def __init__(self, parameter: nn.Parameter, owner: int, device: torch.device) -> None:
        self.parameter, self.owner = parameter, owner
        self.is_ours = owner == distributed.rank()
        if self.is_ours:
            self.whole = self.absent = parameter.data = parameter.data.to(device).contiguous()
        else:
            self.whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            self.absent = _no_numbers(self.whole)
        self.sum: torch.Tensor | None = None
        self.reducing: tuple[distributed.Coming, torch.Tensor] | None = None

    def start(self, name: int) -> distributed.Coming:
        """Let the weight come from its owner."""
        if not self.is_ours:
            self.whole.untyped_storage().resize_(self.whole.nbytes)
        return distributed.broadcast_begun(self.whole, self.owner, name)

    def show(self) -> None:
        """Let the model compute with it."""
        if not self.is_ours:
            self.parameter.data = self.whole

    def give_up(self) -> None:
        """Let go of it, but at its owner."""
        if not self.is_ours:
            self.parameter.data = self.absent
            self.whole.untyped_storage().resize_(0)

    def reduce(self) -> None:
        """Begin to sum its gradient at its owner."""
        self._settle()
        gradient = self.parameter.grad
        gradient = torch.zeros_like(self.whole) if gradient is None else gradient.contiguous()
        self.parameter.grad = None
        self.reducing = distributed.reduce_begun(gradient, self.owner), gradient

    def _settle(self) -> None:
        if self.reducing is None:
            return
        coming, gradient = self.reducing
        coming.wait()
        self.reducing = None
        if self.is_ours:
            self.sum = gradient if self.sum is None else self.sum.add_(gradient)

    def collect(self) -> None:
        """Let the owner's parameter have the sum as its gradient."""
        self._settle()
        self.parameter.grad, self.sum = self.sum, None

    def keep_on_cpu(self) -> None:
        """Let it be a copy on the CPU from now on."""
        self.parameter.data = self.parameter.data.to("cpu", copy=True)
        self.is_ours = True  # nothing is given up any more


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
