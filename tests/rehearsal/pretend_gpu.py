"""A GPU that is not there: cuda tensors for tests, on a build of torch without cuda; no compiler.

A tensor "on cuda:0" is torch's own FakeTensor with cuda's dispatch keys, and numbers of its own on
the CPU (its shadow), on which each operation is done too. So code runs as on a GPU, with real
numbers, and is caught where it

- mixes devices (FakeTensorDeviceMismatchError);
- lets the host wait for the device: a number read, a copy of memory that is not pinned, an output
  whose shape depends on numbers. `waits` counts them by kind and by the line that asked.

`memory` counts the bytes that tensors on the device have, from their storages. With `numbers=False`
tensors have no shadow, so that models of any size can be trained as far as shapes go: a number that
is read is 1. `on_kernel` is called with each operation on the device.

What it cannot see: whether a kernel is right or fast, fragmentation, NCCL, random numbers of the
device. It takes hold of torch by private interfaces, all of them in this file, so it is for the
versions that it was tried with: see VERSIONS.
"""

from __future__ import annotations

import re
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # it looks at what is replaced below
import torch.cuda.amp.common
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from llmft.modeling import recompute

VERSIONS = ("2.11.", "2.13.")
TRIED = torch.__version__.startswith(VERSIONS)
REASON = f"the rehearsal's hold on torch is for {VERSIONS}, and this is {torch.__version__}"

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
_SHAPES = {"nonzero", "_unique2", "unique_dim", "masked_select", "bincount", "repeat_interleave"}
_BY_MASK = {"index", "index_put", "index_put_", "_index_put_impl_"}


def is_gpu(value: Any) -> bool:
    """Return whether a value is a tensor on the device that is not there."""
    return isinstance(value, FakeTensor) and value.fake_device.type == "cuda"


class PretendGpu(TorchDispatchMode):
    """While it is entered, cuda:0 can be asked for. Enter it for a whole run."""

    def __init__(self, *, numbers: bool = True) -> None:
        super().__init__()
        self.numbers, self.memory = numbers, Memory()
        self.on_kernel: Callable[[Any, Any, Any, Any], object] = lambda *_: None
        self.mode, self.waits, self.inside = (
            _CudaMode(allow_non_fake_inputs=True),
            Counter[tuple[str, str]](),
            0,
        )

    def __enter__(self) -> Any:
        self.undo = _installed(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.undo()

    def on_device(self, real: torch.Tensor) -> torch.Tensor:
        """Return a tensor on the device with these numbers."""
        with torch._C._DisableTorchDispatch(), torch.no_grad():
            meta = torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device="meta")
        made = FakeTensor(self.mode, meta, CUDA)
        made.shadow = real if self.numbers else None
        self.memory.add(made)
        return made

    def wait(self, kind: str) -> None:
        """Note that the host waits."""
        self.waits[kind, _asked_by()] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), func._schema.name.removeprefix("aten::")
        if name == "empty" and kwargs.pop("pin_memory", False):
            made = func(*args, **kwargs)
            made.pretends_to_be_pinned = True
            return made
        leaves = tree_leaves((args, kwargs))
        on_gpu, where = any(map(is_gpu, leaves)), kwargs.get("device")
        # C++ sees the meta device where a tensor is on cuda, and makes new ones there.
        in_cpp = self.inside or torch._C._current_autograd_node() is not None
        to_gpu = where is not None and (
            where.type == "cuda" or (where.type == "meta" and (on_gpu or bool(in_cpp)))
        )
        if not on_gpu and not to_gpu:
            return func(*args, **kwargs)
        if (
            name in ("_to_copy", "copy_")
            and (moved := self._moved(name, args, kwargs, to_gpu)) is not None
        ):
            return moved
        if name in ("_local_scalar_dense", "is_nonzero", "equal"):
            self.wait("number read")
            return func(*_real(args)) if self.numbers else _one(args[0])
        if to_gpu:
            kwargs["device"] = CUDA
        masks = name in _BY_MASK and any(v is not None and v.dtype == torch.bool for v in args[1])
        real = _on_cpu(func, _real(args), _real(kwargs)) if self.numbers else None
        if name in _SHAPES or masks:
            if not self.numbers:
                raise NotImplementedError(f"the shape of {name} depends on numbers")
            self.wait(f"shape of {name}")
            if name.endswith("_"):
                return args[0]
            return tree_map(lambda v: self.on_device(v) if isinstance(v, torch.Tensor) else v, real)
        if name in _BY_MASK:  # indices may lie on the CPU; they are copied
            args = [args[0], [self._lent(v) for v in args[1]], *args[2:]]
        with self.mode:
            out = func(*args, **kwargs)
        leaves = tree_leaves(out)
        shadows = tree_leaves(real) if self.numbers else [None] * len(leaves)
        for made, numbers in zip(leaves, shadows, strict=False):
            if is_gpu(made):
                made.shadow = numbers
                self.memory.add(made)
        self.on_kernel(func, args, kwargs, out)
        return out

    def _moved(self, name: str, args: Any, kwargs: Any, to_gpu: bool) -> Any:
        """Return what a copy between devices gives, or None where it stays on the device."""
        if name == "copy_":
            to, source = args[:2]
            if is_gpu(to) == is_gpu(source):
                return None
            blocks = not (args[2:] or kwargs.get("non_blocking"))
            if blocks or not any(hasattr(one, "pretends_to_be_pinned") for one in (to, source)):
                self.wait("copy to the device" if is_gpu(to) else "copy to the host")
            if self.numbers:
                _real(to).copy_(_real(source))
            elif not is_gpu(to):
                to.fill_(1)
            return to
        (source,) = args
        dtype = kwargs.get("dtype") or source.dtype
        if is_gpu(source):
            if kwargs.get("device") is None or to_gpu:
                return None
            self.wait("copy to the host")
            if not self.numbers:
                return torch.ones(source.shape, dtype=dtype)
            return source.shadow.to(dtype, copy=True)
        pinned = kwargs.get("non_blocking") and hasattr(source, "pretends_to_be_pinned")
        if source.numel() and not pinned:  # nothing is copied of an empty one
            self.wait("copy to the device")
        with torch._C._DisableTorchDispatch():
            if not self.numbers:  # which may lie on the meta device
                return self.on_device(torch.empty_like(source, dtype=dtype, device="meta"))
            return self.on_device(source.detach().to(dtype, copy=True))

    def _lent(self, index: Any) -> Any:
        if isinstance(index, torch.Tensor) and not is_gpu(index):
            self.wait("copy to the device")
            return self.on_device(index)
        return index


@contextmanager
def known_to_accelerate() -> Iterator[None]:
    """Let accelerate, and so the training loop, take the device for this process's own."""
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    states = (PartialState, AcceleratorState)
    for state in states:
        state._shared_state.clear()
    PartialState().device = CUDA
    try:
        yield
    finally:
        for state in states:
            state._shared_state.clear()


class Memory:
    """The bytes of the storages that live, and the most that did since `peak` was set to 0."""

    def __init__(self) -> None:
        self.live = self.peak = 0
        self._seen: set[int] = set()

    def add(self, tensor: torch.Tensor) -> None:
        """Count the storage of a tensor, once, until nobody has it."""
        storage = tensor.untyped_storage()
        place, size = storage._cdata, storage.nbytes()
        if place in self._seen:
            return
        self._seen.add(place)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, place, size).atexit = False

    def _gone(self, place: int, size: int) -> None:
        self._seen.remove(place)
        self.live -= size


def _one(tensor: torch.Tensor) -> float | int | bool:
    """Return what is read of a tensor that has no numbers."""
    kinds = {torch.bool: True}
    return kinds.get(tensor.dtype, 1.0 if tensor.is_floating_point() else 1)


class _CudaMode(FakeTensorMode):
    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "meta":
            kwargs["device"] = CUDA
        return super().dispatch(func, types, args, kwargs)


class _Asked(TorchFunctionMode):
    """What C++ does by a tensor's device, which is meta there: autocast, and 'cuda' alone."""

    def __init__(self, gpu: PretendGpu) -> None:
        self.gpu, self.casts = gpu, dict[int, Any]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        args, kwargs = (
            tuple(map(_numbered, args)),
            {k: _numbered(v) for k, v in (kwargs or {}).items()},
        )
        leaves = tree_leaves((args, kwargs))
        if not any(map(is_gpu, leaves)):
            return func(*args, **kwargs)
        if name == "cuda":
            return args[0].to(CUDA)
        if name == "numpy":
            return args[0].cpu().numpy()
        if name == "new_tensor":
            return torch.tensor(args[1], dtype=kwargs.get("dtype") or args[0].dtype).to(CUDA)
        if name in ("__getitem__", "__setitem__"):
            args = (args[0], _listed(args[1]), *args[2:])
        if torch.is_autocast_enabled("cuda"):
            args, kwargs = self._cast(_ATEN.get(name, name), args, kwargs)
        if name == "scaled_dot_product_attention" and not self.gpu.numbers:
            return _by_flash(*args, **kwargs)
        self.gpu.inside += 1
        try:
            return func(*args, **kwargs)
        finally:
            self.gpu.inside -= 1

    def _cast(self, name: str, args: Any, kwargs: Any) -> Any:
        fast = torch.get_autocast_dtype("cuda")
        if name in _WIDE_SUMS and args and args[0].dtype in (torch.float16, torch.bfloat16):
            return args, {"dtype": torch.float32, **kwargs}
        if name not in _NARROW and name not in _WIDE:
            return args, kwargs
        wanted = fast if name in _NARROW else torch.float32

        def cast(v: Any) -> Any:
            if not is_gpu(v) or not v.is_floating_point() or v.dtype in (wanted, torch.float64):
                return v
            if v.requires_grad and v.is_leaf and wanted == fast and torch.is_grad_enabled():
                return self.casts.setdefault(id(v), (v, v.to(wanted)))[1]
            return v.to(wanted)

        return tree_map(cast, args), tree_map(cast, kwargs)


def _lists() -> list[set[str]]:
    text = Path(torch.__file__).with_name("include").joinpath("ATen/autocast_mode.h").read_text()
    bodies = (text.split(f"define AT_FORALL_{name}(_)")[1].split("\n\n")[0].split("#define")[0]
              for name in ("LOWER_PRECISION_FP", "FP32", "FP32_SET_OPT_DTYPE"))  # fmt: skip
    return [set(re.findall(r"_\((\w+)", body)) for body in bodies]


_NARROW, _WIDE, _WIDE_SUMS = _lists()
_ATEN = {"__matmul__": "matmul", "__rmatmul__": "matmul", "__pow__": "pow", "__rpow__": "pow",
         "vecdot": "linalg_vecdot", "vector_norm": "linalg_vector_norm",
         "cross_entropy": "nll_loss"}  # fmt: skip


def _by_flash(query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
              is_causal: bool = False, scale: float | None = None,
              enable_gqa: bool = False) -> Any:  # fmt: skip
    """Return attention by the kernel that a GPU takes; for a meta tensor torch takes none."""
    if attn_mask is not None or query.dtype not in (torch.bfloat16, torch.float16):
        raise NotImplementedError("without numbers only flash attention is rehearsed")
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    return flash(query, key, value, dropout_p, is_causal, scale=scale)[0]


def _real(tree: Any) -> Any:
    return tree_map(
        lambda v: v.shadow if is_gpu(v) else CPU if isinstance(v, torch.device) else v, tree
    )


def _on_cpu(func: Any, args: Any, kwargs: Any) -> Any:
    if func is torch.ops.aten.mm.dtype:  # which a CPU does not have
        left, right, dtype = args
        return left.to(dtype) @ right.to(dtype)
    return func(*args, **kwargs)


def _pinned(tensor: Any) -> Any:
    tensor = tensor.clone()
    tensor.pretends_to_be_pinned = True
    return tensor


def _listed(index: Any) -> Any:
    """Return an index with tensors on the CPU for its lists: C++ would make them on meta."""
    if isinstance(index, tuple):
        return tuple(map(_listed, index))
    return torch.tensor(index) if isinstance(index, list) else index


def _numbered(value: Any) -> Any:
    bare = isinstance(value, torch.device) and value.type == "cuda" and value.index is None
    return CUDA if bare or (isinstance(value, str) and value == "cuda") else value


def _asked_by() -> str:
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/torch/" not in file and file != __file__ and "<" not in file:
            return f"{'/'.join(file.split('/')[-2:])}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


def _apply(module: Any, fn: Any, recurse: bool = True, memo: Any = None) -> Any:
    """nn.Module._apply, for tensors that cannot take another's place; what is tied stays so."""
    memo = {} if memo is None else memo
    for child in module.children() if recurse else ():
        child._apply(fn, recurse, memo)
    for key, old in module._parameters.items():
        if old is not None and id(old) not in memo:
            with torch.no_grad():
                new = fn(old)
            memo[id(old)] = old, new if new is old else torch.nn.Parameter(new, old.requires_grad)
        if old is not None:
            module._parameters[key] = memo[id(old)][1]
    for key, old in module._buffers.items():
        module._buffers[key] = None if old is None else fn(old)
    return module


def _installed(gpu: PretendGpu) -> Any:
    """Let torch take fake cuda tensors for the block; return what undoes it."""
    asked, undo = _Asked(gpu), []

    def put(place: Any, name: str, new: Any) -> Any:
        old = place.__dict__.get(name, undo)
        undo.append(lambda: delattr(place, name) if old is undo else setattr(place, name, old))
        setattr(place, name, new)
        return getattr(old, "__func__", old)

    plain = torch.Tensor._make_subclass

    def made(cls: Any, data: Any, requires_grad: bool = False, *, dispatch_device: bool = False,
             device_for_backend_keys: Any = None, **more: Any) -> Any:  # fmt: skip
        cuda = device_for_backend_keys is not None and device_for_backend_keys.type == "cuda"
        # With cuda's keys, but not cuda to C++: autograd's engine would ask for a stream.
        return plain(cls, data, requires_grad, dispatch_device=dispatch_device and not cuda,
                     device_for_backend_keys=device_for_backend_keys, **more)  # fmt: skip

    again = checkpoint._checkpoint_without_reentrant_generator

    def seen_again(fn: Any, *args: Any, **kwargs: Any) -> Any:
        def seen(*a: Any, **k: Any) -> Any:  # autograd's engine takes no function mode along
            if torch._C._len_torch_function_stack():
                return fn(*a, **k)
            with asked:
                return fn(*a, **k)

        return again(seen, *args, **kwargs)

    compute = recompute._Layer._compute

    def computed(layer: Any) -> None:
        if torch._C._len_torch_function_stack():
            return compute(layer)
        with asked:
            return compute(layer)

    put(torch.Tensor, "_make_subclass", staticmethod(made))
    put(recompute._Layer, "_compute", computed)
    put(torch.nn.Module, "_apply", _apply)
    put(torch.cuda, "_lazy_init", lambda: None)
    put(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    put(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    put(torch, "clear_autocast_cache", asked.casts.clear)
    put(checkpoint, "_checkpoint_without_reentrant_generator", seen_again)
    put(torch.Tensor, "pin_memory", _pinned)
    put(FakeTensor, "tolist", lambda self: self.cpu().tolist())
    put(FakeTensor, "is_cuda", property(lambda self: self.fake_device.type == "cuda"))
    lifts = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") is a copy then
    asked.__enter__()

    def all_back() -> None:
        asked.__exit__(None, None, None)
        torch._C._set_only_lift_cpu_tensors(lifts)
        for one in reversed(undo):
            one()

    return all_back
