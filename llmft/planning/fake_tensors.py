"""Models without numbers: every tensor has its shape, type and device, and no memory behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from llmft.modeling import attention
from llmft.modeling.base_model import BaseModel, proven_levers
from llmft.modeling.levers import ATTRIBUTE
from llmft.modeling.one_step import take_over
from llmft.planning.quantized import quantize


def fake_base(base: BaseModel, options: Mapping[str, Any], *, varlen: bool, in_ram: bool) -> Any:
    """Return the base on the meta device, in its dtype, quantised by bitsandbytes' own layers.

    options: BitsAndBytesConfig's names. varlen: as for `BaseModel.load`. in_ram: a CPU computes.
    """
    model, source = base.empty(), base.source
    for parameter in model.parameters():  # buffers keep their type, as when weights are loaded
        parameter.data = parameter.data.to(getattr(torch, source.dtype))
    model.name_or_path = source.path
    if options.get("load_in_4bit") or options.get("load_in_8bit"):
        quantize(model, options)
    levers = proven_levers(source, model.config)
    setattr(model, ATTRIBUTE, levers)
    if source.fused == "none" and in_ram:
        take_over(model)
    if varlen and source.attn_implementation in attention.NAMES and levers.padding_free:
        attention.register()
        model.set_attn_implementation(attention.NAME)
    model.requires_grad_(False)
    return model


class _Lent:
    """Gives each meta tensor its stand-in, one for one, so that what is shared stays shared."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.known: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, FakeTensor) or tensor.device.type != "meta":
            return tensor
        if id(tensor) not in self.known:
            self.known[id(tensor)] = (tensor, self._made(tensor))
        return self.known[id(tensor)][1]

    def _made(self, tensor: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            plain = tensor.detach().as_subclass(torch.Tensor)
        made: torch.Tensor = FakeTensor(self.mode, plain, torch.device("cpu"))
        if isinstance(tensor, torch.nn.Parameter):
            made = torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
            for name in ("quant_state", "CB", "SCB"):
                if getattr(tensor, name, None) is not None:
                    setattr(made, name, self._any(getattr(tensor, name)))
        return made

    def _any(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self(value)
        if type(value).__name__ == "QuantState":
            for name, held in vars(value).items():
                setattr(value, name, self._any(held))
        return value


class Body:
    """Lets models on the meta device be computed with, as on the CPU, still without memory."""

    def __init__(self) -> None:
        self._lend = _Lent()

    def given_to(self, model: Any) -> Any:
        """Return the model, its meta tensors replaced in place."""
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        tensors[name] = self._lend(tensor)
            for name, value in list(vars(module).items()):
                if isinstance(value, torch.Tensor) or type(value).__name__ == "QuantState":
                    vars(module)[name] = self._lend._any(value)
        return model


_READ = {"tolist", "item", "__float__", "__int__", "__bool__", "numpy", "cpu"}


_GROUPED = {"grouped_mm", "_grouped_mm"}


class ShapesOnly(TorchFunctionMode):
    """While it is entered, numbers read from a tensor without numbers are made up."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _READ and args and _is_fake(args[0]):
            return func(_made_up(args[0]), *args[1:], **(kwargs or {}))
        if name in _GROUPED and args and _is_fake(args[0]):
            # Experts' products: torch's own shape function knows of bfloat16 only.
            offs = (kwargs or {}).get("offs", args[2] if len(args) > 2 else None)
            return torch.ops.transformers.grouped_mm_fallback(args[0], args[1], offs)
        if name == "__getitem__" and _is_mask(args[1]) and any(map(_is_fake, args)):
            return args[0].flatten(0, args[1].ndim - 1)[_places(args[1])]
        return func(*args, **(kwargs or {}))


def _is_fake(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and (
        isinstance(value, FakeTensor) or value.device.type == "meta"
    )


def _is_mask(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bool


def _places(mask: torch.Tensor) -> torch.Tensor:
    """Return where a mask holds; everywhere, which takes the most, where that is not known."""
    if _is_fake(mask):
        return torch.arange(mask.numel(), device="cpu")
    return mask.flatten().nonzero().squeeze(1)


def _made_up(tensor: torch.Tensor) -> torch.Tensor:
    """Return 0, 1, 2, ... in a tensor's shape: where a method compares two numbers, none tie."""
    numbers = torch.arange(tensor.numel(), device="cpu").remainder(127)
    return numbers.to(tensor.dtype).reshape(tensor.shape)


def tensors_of(model: Any) -> Iterator[torch.Tensor]:
    """Yield every tensor a model holds: parameters, buffers, and what packed weights need."""
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                yield tensor
                for name in ("CB", "SCB"):
                    if isinstance(getattr(tensor, name, None), torch.Tensor):
                        yield getattr(tensor, name)
                yield from _constants(getattr(tensor, "quant_state", None))


def _constants(state: Any) -> Iterator[torch.Tensor]:
    if type(state).__name__ == "QuantState":
        for value in vars(state).values():
            if isinstance(value, torch.Tensor):
                yield value
            else:
                yield from _constants(value)
