"""The load-balancing loss of a mixture's routers, as the model's own forward pass computes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from llmft.modeling.levers import ATTRIBUTE, levers_of

_FLAG, _COEFFICIENT = "output_router_logits", "router_aux_loss_coef"


def own_coefficient(model: Any, *, always: bool = False) -> float | None:
    """Return the weight that a model's config gives its routers' loss; None where it has none.

    always: else it is 0 where the config has not `output_router_logits: true`, without which
    transformers' own loss leaves it out.
    """
    config = model.config.get_text_config()
    if not (hasattr(config, _FLAG) and hasattr(config, _COEFFICIENT)):
        return None
    used = always or bool(getattr(config, _FLAG))
    return float(getattr(config, _COEFFICIENT) or 0.0) if used else 0.0


@contextmanager
def router_loss(model: Any) -> Iterator[list[torch.Tensor]]:
    """Collect the routers' loss of each forward pass in the block, one number, with its gradient.

    It is least, top-k, where every expert gets as many tokens (Fedus et al. 2021, equations 4 to
    6), over all tokens of the pass that are no padding. The last layer is computed whole: its
    router decides on every token. Nothing is collected where the model computes none.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config, found = base.config.get_text_config(), []
    flag, levers = getattr(config, _FLAG), levers_of(model)

    def take(module: Any, args: Any, out: Any) -> None:
        if (loss := getattr(out, "aux_loss", None)) is not None:
            found.append(loss)

    handle = base.register_forward_hook(take)
    setattr(config, _FLAG, True)
    setattr(base, ATTRIBUTE, replace(levers, last_layer=False))
    try:
        yield found
    finally:
        handle.remove()
        setattr(config, _FLAG, flag)
        setattr(base, ATTRIBUTE, levers)
