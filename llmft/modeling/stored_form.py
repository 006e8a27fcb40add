"""The form in which a base's files hold its weights, where that is not plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmft.api.errors import EnvironmentFault
from llmft.api.shown_text import escaped

BITSANDBYTES = "bitsandbytes"
_NAMES = {
    "gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8", "fbgemm_fp8": "FP8 (FBGEMM)", "hqq": "HQQ",
    "mxfp4": "MXFP4", "torchao": "torchao", "bitnet": "BitNet", "compressed-tensors":
    "compressed-tensors", "aqlm": "AQLM", "eetq": "EETQ", "quanto": "Quanto", "vptq": "VPTQ",
}  # fmt: skip
_COMPARED = (
    "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant",
    "bnb_4bit_compute_dtype",
)  # fmt: skip


def refuse_stored_form(path: str, config: Any, key: str = "model") -> None:
    """Raise EnvironmentFault (E231) where a base's files hold a form that cannot be trained on.

    key: the recipe's key that names the model.
    """
    stored = _stored(config)
    if stored is None or _method(stored) == BITSANDBYTES:
        return
    method = _method(stored)
    name = _NAMES.get(method, f"a form called '{escaped(method)[:40]}'" if method else "a form")
    known = "" if method else " that its config.json does not name"
    raise EnvironmentFault(
        "E231",
        f"the weights in '{path}' are stored by {name}{known}, on which nothing here trains",
        fix=f"give the model with plain weights (bfloat16), and {key}.quantization:"
        " {load_in_4bit: true} where it is to be small",
    )


def form_misfit(
    config: Any, options: Mapping[str, Any], key: str = "model"
) -> tuple[str, str] | None:
    """Return how a base that bitsandbytes has stored is not as the recipe loads it, and the fix.

    options: BitsAndBytesConfig's names, from the recipe and the adapter. transformers would take
    what is stored, and only warn. key: the recipe's key that names the model.
    """
    stored = _stored(config)
    if stored is None or _method(stored) != BITSANDBYTES:
        return None
    four = bool(stored.get("load_in_4bit"))
    names = [n for n in _COMPARED if n in stored and (four or not n.startswith("bnb_"))]
    wanted = {name: stored[name] for name in names}
    differ = [n for n, value in wanted.items() if _plain(options.get(n, False)) != _plain(value)]
    if not differ:
        return None
    given = [f"{name}: {_said(wanted[name])}" for name in names if wanted[name] or name in differ]
    bits = 4 if four else 8
    return (
        f"its weights are stored by bitsandbytes in {bits} bits, and the recipe does not load them"
        f" so ({', '.join(differ)})",
        f"write {key}.quantization: {{{', '.join(given)}}}",
    )


def _stored(config: Any) -> Mapping[str, Any] | None:
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    told: Mapping[str, Any] = found if isinstance(found, Mapping) else found.to_dict()
    return told


def _method(stored: Mapping[str, Any]) -> str:
    """Return the method's name; older files of bitsandbytes do not have it."""
    if "quant_method" not in stored and ("load_in_4bit" in stored or "load_in_8bit" in stored):
        return BITSANDBYTES
    method = stored.get("quant_method", "")
    return str(getattr(method, "value", method))


def _plain(value: Any) -> str:
    return str(value).removeprefix("torch.")


def _said(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else _plain(value)
