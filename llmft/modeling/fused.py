"""Kernels that take several steps of a layer at once: Liger's, or those of torch.compile.

What stays llmft's own in either case: attention, the adapters' products, and the loss.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from llmft.api.errors import EnvironmentFault
from llmft.modeling.levers import Fused
from llmft.system.machine import device

_PUT_IN: dict[tuple[ModuleType, str], Any] = {}
"""The functions of transformers that Liger replaced for the whole process, by module and name."""


def check_fused(how: Fused, model_type: str) -> None:
    """Raise EnvironmentFault where these kernels cannot run here, or not on this architecture."""
    if how != "liger":
        return
    if find_spec("liger_kernel") is None:
        raise _refused("needs the package liger-kernel", "pip install 'llmft[liger]'")
    if device() != "cuda":
        raise _refused("needs a GPU, and this machine has none")
    if model_type not in (known := _appliers()):
        names = ", ".join(sorted(known))
        raise _refused(f"has no kernels for the type '{model_type}' (it has: {names})")


def _refused(why: str, fix: str = "write fused: none, or compile") -> EnvironmentFault:
    return EnvironmentFault("E206", f"liger {why}", fix=fix, path="model.fused")


def fuse(model: Any, how: Fused) -> None:
    """Let a model's norms, with Liger its rotations and feed-forward blocks too, run fused.

    The model's weights, and its modules' names, stay as they are. Liger puts its rotation into the
    module of transformers, for all models of the type; `fuse(model, "none")` takes it out again.
    Raises as `check_fused` does.
    """
    for (module, name), original in _PUT_IN.items():
        setattr(module, name, original)
    _PUT_IN.clear()
    check_fused(how, model.config.model_type)
    if how == "compile":
        # A feed-forward block holds an adapter of its own in each layer, and would be compiled for
        # each: torch gives up after the eighth.
        for module in model.get_decoder().modules():
            if type(module).__name__.endswith("Norm"):
                module.compile(dynamic=True)
    elif how == "liger":
        _by_liger(model)


def _by_liger(model: Any) -> None:
    code = sys.modules[type(model).__module__]
    before = dict(vars(code))
    _appliers()  # it imports what it replaces
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    try:
        _apply_liger_kernel_to_instance(
            model, rope=True, rms_norm=True, layer_norm=True, swiglu=True, geglu=True,
            cross_entropy=False, fused_linear_cross_entropy=False,
        )  # fmt: skip
    finally:
        for name, value in before.items():
            if vars(code)[name] is value:
                continue
            if isinstance(value, type):  # for models to come, which nobody asked it for
                setattr(code, name, value)
            else:
                _PUT_IN[code, name] = value


def _appliers() -> dict[str, Any]:
    """Return Liger's functions, each by the type of model that it is for."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    found: dict[str, Any] = MODEL_TYPE_TO_APPLY_LIGER_FN
    return found
