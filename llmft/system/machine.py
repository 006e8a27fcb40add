"""The device that models are on, and the generators that are seeded."""

from __future__ import annotations

import random

from llmft.system.launcher import on_cpu


def device() -> str:
    """Return the device that models are trained on."""
    from accelerate import PartialState

    return str(PartialState(cpu=on_cpu()).device)


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
