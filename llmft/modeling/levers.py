"""Which shortcuts of the forward pass are right for an architecture: proved, not asked.

Rows laid end to end, a shared prompt, a narrowed last layer, the loss taken from the output
layer's input, and a cache of keys and values save much work, and each is wrong for some
architecture: layers that carry a state beside attention, positions that do not count from 0,
logits changed after the output layer. So each is compared with every row alone in plain
transformers, on a small random copy of the same config, and one that disagrees, or fails, is left
out. What was found is kept on disk.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

Fused = Literal["none", "liger", "compile"]
"""The kernels that take several steps of a layer at once: see fused.py."""
ATTRIBUTE = "llmft_levers"
"""Where a base model keeps its own."""


@dataclass(frozen=True, slots=True)
class Levers:
    """What may be used on a model. unproven: why nothing could be compared; '' where it was.

    looks_ahead: how a token's logits depend on tokens after it; '' if they do not. wrong_padded:
    what is wrong with rows padded in one batch, which is the plainest path; '' if nothing is.
    """

    padding_free: bool = True
    shared_prompt: bool = True
    last_layer: bool = True
    frozen_head: bool = True
    identity_head: bool = True
    cached_decoding: bool = True
    unproven: str = ""
    looks_ahead: str = ""
    wrong_padded: str = ""

    def off(self) -> list[str]:
        """Return the names of those that are left out, as a person reads them."""
        return [words for name, words in _WORDS.items() if not getattr(self, name)]

    def remark(self, model_type: str) -> str:
        """Return what a person should know of them; '' where all are used."""
        off = self.off()
        if not off:
            return ""
        return (
            f"left out, as they do not give plain transformers' numbers on '{model_type}':"
            f" {', '.join(off)}"
        )


_WORDS = {
    "padding_free": "padding-free rows",
    "shared_prompt": "shared prompts",
    "last_layer": "the narrowed last layer",
    "frozen_head": "the loss from the output layer's input",
    "identity_head": "states without logits",
    "cached_decoding": "cached decoding",
}
ALL = Levers()
NONE = Levers(False, False, False, False, False, False)


def levers_of(model: Any) -> Levers:
    """Return what may be used on a model, an adapter's wrapper too; all, where nobody has asked."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    found: Levers = getattr(base, ATTRIBUTE, ALL)
    return found


def proven(config: Any, attention: str, dtype: str = "float32", fused: Fused = "none") -> Levers:
    """Return the levers that are right for a model's config, found on disk or tried now.

    attention: the attention code for padded batches. dtype: the type of the base's weights. fused:
    the kernels that the model has.
    """
    asked = [attention, dtype, fused]
    found = remembered(config, asked, lambda: asdict(_tried(config, attention, dtype, fused)))
    return Levers(**found)


# --- kept


@lru_cache(maxsize=1)
def _code() -> str:
    """Return a hash of the code that is tried, and the versions of what it calls."""
    import torch
    import transformers

    hasher = hashlib.sha256(f"{torch.__version__} {transformers.__version__}".encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        hasher.update(file.read_bytes())
    return hasher.hexdigest()


def remembered(config: Any, asked: Any, find: Callable[[], Any]) -> Any:
    """Return what was found out about a model's config, from disk where it was found before.

    asked: what else the answer depends on, as JSON. The answer is JSON too. It is kept for these
    versions of the code and the libraries, and this kind of device.
    """
    import torch

    from llmft.system.machine import device

    stated = {k: v for k, v in config.to_dict().items() if k not in _OF_A_FILE and k[0] != "_"}
    told = json.dumps([stated, asked], sort_keys=True, default=str)
    key = hashlib.sha256(
        f"{_code()} {type(config).__name__} {told} {device()}".encode()
    ).hexdigest()
    if key in _known:
        return _known[key]
    folder = _folder()
    path = folder / f"{key}.json" if folder else None
    if path is not None and path.is_file():
        with suppress(OSError, ValueError):
            _known[key] = json.loads(path.read_text("utf-8"))
            return _known[key]
    # Whatever is going on around: a plan makes its models on torch's meta device.
    with torch.device("cpu"), torch.enable_grad():
        _known[key] = found = find()
    if path is not None:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            staged = path.with_suffix(f".{os.getpid()}")
            staged.write_text(json.dumps(found), "utf-8")
            staged.replace(path)
    return found


_known: dict[str, Any] = {}
_OF_A_FILE = ("dtype", "torch_dtype", "transformers_version", "architectures", "use_cache")
"""What a config says of how it was stored or is loaded, and not of the architecture."""


def _folder() -> Path | None:
    asked = os.environ.get("LLMFT_CACHE")
    if asked == "off":
        return None
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return (Path(asked) if asked else Path(home) / "llmft") / "levers"


# --- tried


def _tried(config: Any, attention: str, dtype: str, fused: Fused) -> Levers:
    from llmft.modeling.lever_trial import Trial

    try:
        trial = Trial.of(config, attention, fused)
    except Exception as error:  # whatever an architecture raises on sizes that do not fit it
        return replace(NONE, unproven=said(error))
    return found_by(trial, dtype)


def found_by(trial: Any, dtype: str) -> Levers:
    """Return the levers that agree with a trial's plain numbers, each one tried by itself."""
    if ahead := trial.looks_ahead():
        return replace(NONE, looks_ahead=ahead)
    if wrong := trial.wrong(NONE):
        return replace(NONE, wrong_padded=wrong)
    base = NONE
    if trial.takes_varlen and not trial.wrong(replace(NONE, padding_free=True)):
        base = replace(NONE, padding_free=True)
    found = base
    if not trial.wrong(replace(base, last_layer=True)):
        found = replace(found, last_layer=True)
    if not trial.wrong(replace(base, frozen_head=True)):
        found = replace(found, frozen_head=True)
    if base.padding_free and not trial.wrong_shared(replace(base, shared_prompt=True)):
        found = replace(found, shared_prompt=True)
    if not trial.wrong_states(replace(base, identity_head=True)):
        found = replace(found, identity_head=True)
    if not trial.wrong_decoding(replace(base, cached_decoding=True)):
        found = replace(found, cached_decoding=True)
    if trial.wrong(found) or (dtype != "float32" and trial.wrong(found, dtype)):
        return replace(NONE, cached_decoding=found.cached_decoding)  # together they are not right
    return found


def said(error: BaseException) -> str:
    """Return an error in a line."""
    lines: Sequence[str] = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
