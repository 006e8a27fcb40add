"""An adapter tried on a small random copy of the model, before a weight is loaded."""

from __future__ import annotations

from typing import Any

from llmft.api import Adapter
from llmft.api.model_settings import ModelSource
from llmft.modeling.base_model import dense_attention, proven_levers
from llmft.modeling.levers import Levers, remembered

APART = 1e-3
"""By how much of itself a row's loss may differ in a batch, in float32."""
APART_GRADIENT = 5e-3
"""By how much of its length the gradient of a trained weight may."""


def failure(adapter: Adapter[Any], source: ModelSource, config: Any) -> str:
    """Return why an adapter cannot be trained on a model's architecture; '' where it can.

    A row's loss in a batch must be what it is alone, and a gradient must come back; where the base
    itself is trained, that of the rows alone. Nothing is said of an adapter that has no form for a
    small copy.
    """
    levers = proven_levers(source, config)
    small = adapter.on_small_copy()
    if small is None:
        return ""
    asked = [source.attn_implementation, source.dtype, small.config.model_dump(mode="json")]
    why: str = remembered(config, asked, lambda: _failure(small, adapter, source, config, levers))
    return why


def _failure(
    small: Adapter[Any], adapter: Adapter[Any], source: ModelSource, config: Any, levers: Levers
) -> str:
    from llmft.modeling import attention
    from llmft.modeling.lever_trial import Trial

    dense = dense_attention(source, config)
    try:
        trial = Trial.of(config, dense)
    except Exception:  # it was proven on another day, or machine: nothing to say here
        return ""
    if list(small.check(trial.copied_model().to("meta"))):
        return ""  # what does not fit the small copy may fit the model
    asked = source.attn_implementation in attention.NAMES
    padding_free = asked and levers.padding_free and adapter.supports_packing
    try:
        return _tried(small, trial, levers, padding_free=padding_free)
    except Exception as error:  # whatever an architecture raises on an adapter that it cannot have
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0][:160] if lines else ''}"


def _tried(adapter: Adapter[Any], trial: Any, levers: Any, *, padding_free: bool) -> str:
    import torch

    from llmft.modeling import attention
    from llmft.modeling.dropout import without_dropout
    from llmft.modeling.forward import label_nll
    from llmft.modeling.levers import ATTRIBUTE, NONE

    base = trial.copied_model()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = adapter.attach(base)
        trained = [p for p in model.parameters() if p.requires_grad] if model is not None else []
        if not trained:
            return ""  # a fault of the adapter's code, not of the pair: told where it is attached
        with torch.no_grad():
            for parameter in trained:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    model.train()
    with without_dropout(model):
        setattr(base, ATTRIBUTE, NONE)
        with torch.set_grad_enabled(adapter.trains_base):
            alone = torch.stack([label_nll(model, [row]).nll_N.sum() for row in trial.rows])
        plainly: Any = ()
        if adapter.trains_base:
            plainly = torch.autograd.grad(alone.sum(), trained, allow_unused=True)
        alone = alone.detach()
        setattr(base, ATTRIBUTE, levers)
        if padding_free:
            attention.register()
            base.set_attn_implementation(attention.NAME)
        losses = label_nll(model, trial.rows).per_row(len(trial.rows))
        gradients = torch.autograd.grad(losses.sum(), trained, allow_unused=True)
    apart = float(((losses.detach() - alone) / alone).abs().max())
    if not apart <= APART:
        return f"the loss of a row is {apart:.2%} off beside other rows"
    for wanted, found in zip(plainly, gradients, strict=False):  # none, where the base is frozen
        if wanted is not None and not _close(wanted, found):
            return "the gradient of a weight is not that of the rows alone"
    return "" if any(g is not None and g.abs().sum() > 0 for g in gradients) else "no gradient"


def _close(wanted: Any, found: Any) -> bool:
    if found is None:
        return not bool(wanted.any())
    return bool((found - wanted).norm() <= APART_GRADIENT * wanted.norm() + 1e-6)
