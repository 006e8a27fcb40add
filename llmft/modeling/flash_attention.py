"""FlashAttention's own packages, chosen by name, in place of torch's kernel in padding-free passes.

Never by transformers' integration: it reads positions back from the GPU in every layer, and knows
neither keys that an adapter learns nor a prompt that answers share. Never from the hub.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from llmft.modeling import varlen_kernel
from llmft.system.machine import on_gpu

if TYPE_CHECKING:
    from llmft.modeling.segments import Segments

MODULES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
"""The names that a recipe may give, and the module of each one's package."""
_PACKAGES = {"flash_attention_2": "flash-attn", "flash_attention_3": "flash-attn-3"}
APART = 0.02
"""By how much of their size outputs and gradients in bfloat16 may differ from torch's."""


def misfit(name: str, config: Any) -> str:
    """Return why a package cannot compute a model's attention on any machine; '' where it can."""
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None) or 1
    hidden: int = getattr(text, "hidden_size", None) or 0
    width: int = getattr(text, "head_dim", None) or hidden // heads
    if width % 8 or width > varlen_kernel.WIDEST_HEAD:
        return f"{name} takes heads of up to 256 numbers, a multiple of 8, and these have {width}"
    if name == "flash_attention_3" and getattr(text, "attention_dropout", None):
        return f"{name} has no dropout, and this model drops attention weights in training"
    return ""


def missing(name: str) -> tuple[str, str] | None:
    """Return what this machine lacks for a package, and the fix; None where it can compute."""
    if not on_gpu():
        return f"{name} runs on a GPU, and this machine has none", _AUTO
    if (capability := torch.cuda.get_device_capability()) < (8, 0):
        shown = ".".join(map(str, capability))
        return f"{name} needs the compute capability 8.0 or above, and this GPU has {shown}", _AUTO
    package = _PACKAGES[name]
    if find_spec(MODULES[name]) is None:
        fix = f"pip install {package}, which is compiled for this torch, or {_AUTO}"
        return f"{name} needs the package {package}, which is not installed", fix
    try:
        _function(name)
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        said = str(error).strip().splitlines()
        what = f"the package {package} cannot be loaded: {said[0][:160] if said else error!r}"
        return what, f"install one that is compiled for this torch, or {_AUTO}"
    if (apart := _apart(name)) > APART:
        what = f"the package {package} does not give torch's numbers here: {apart:.1%} off"
        return what, f"install another version, or {_AUTO}"
    return None


_AUTO = "write attn_implementation: auto, which has torch's own kernel on such a GPU"


def takes(query: torch.Tensor) -> bool:
    """Return whether a package computes such queries' attention: of 16 bits, as autocast has it."""
    return varlen_kernel.fused_dtype(query) in varlen_kernel.HALF


@functools.cache
def _function(name: str) -> tuple[Callable[..., Any], frozenset[str]]:
    """Return a package's variable-length function, and its parameters."""
    found = import_module(MODULES[name]).flash_attn_varlen_func
    return found, frozenset(inspect.signature(found).parameters)


def attend(
    name: str,
    tensors: tuple[torch.Tensor, ...],
    segments: Segments,
    learnt: int,
    scale: float | None,
    window: int | None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Return causal attention within each segment, as (1, T, H, D); see `varlen_kernel.attend`."""
    function, known = _function(name)
    laid = varlen_kernel.laid_out(tensors, segments, learnt)
    more: dict[str, Any] = {"dropout_p": dropout} if dropout else {}
    if torch.are_deterministic_algorithms_enabled() and "deterministic" in known:
        more["deterministic"] = True
    # Causal to the right end of each segment's keys, since flash-attn 2.1.
    out = function(
        *laid.qkv, laid.queries, laid.keys, laid.longest_query, laid.longest_key,
        softmax_scale=scale, causal=True,
        window_size=(-1, -1) if window is None else (window - 1, 0), **more,
    )  # fmt: skip
    out_THD: torch.Tensor = out[0] if isinstance(out, tuple) else out  # of 3, some versions' do
    return out_THD.unsqueeze(0)


@functools.cache
def _apart(name: str) -> float:
    """Return how far a package is from torch's attention: segments, learnt keys, fewer heads."""
    from llmft.modeling.attention import varlen_attention

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    draw = torch.Generator().manual_seed(0)
    shapes = ((1, 4, 90, 64), (1, 2, 93, 64), (1, 2, 93, 64))
    whole = [torch.randn(*shape, generator=draw).to(device) for shape in shapes]
    bounds = torch.tensor([0, 7, 50, 90])
    worst = 0.0
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for window in (None, 9):
            results = []
            for kernel, dtype in (("", torch.float32), (name, torch.bfloat16)):
                q, k, v = (t.detach().to(dtype).requires_grad_() for t in whole)
                out, _ = varlen_attention(
                    None, q, k, v, None, cu_seq_lens_q=bounds, sliding_window=window, kernel=kernel
                )
                loss = out.float().square().sum()
                results.append([out, *torch.autograd.grad(loss, (q, k, v))])
            for wanted, found in zip(*results, strict=True):
                difference = (found.float() - wanted).norm() / wanted.norm()
                worst = max(worst, float(difference.nan_to_num(nan=torch.inf)))
    return worst
