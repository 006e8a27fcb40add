"""TF32: how a GPU rounds the factors of products of float32 numbers, for a while.

Both of torch's interfaces are kept in agreement: it refuses to read the older one otherwise, which
its compiler does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

LEAST = (8, 0)
"""The compute capability from which a GPU has TF32."""


def misfit() -> str:
    """Return why the device has no TF32, as a person reads it; '' where it has."""
    import torch

    from llmft.system import machine

    if not machine.on_gpu() or torch.version.cuda is None:
        return "this machine computes without an NVIDIA GPU"
    found = torch.cuda.get_device_capability()
    if found >= LEAST:
        return ""
    return f"{torch.cuda.get_device_name()} has the compute capability {found[0]}.{found[1]}"


def precision(asked: bool | None) -> dict[str, str]:
    """Return how float32 numbers are multiplied under a setting, in torch's words, by operation.

    asked: as for `float32_products`.
    """
    import torch

    own: Any = torch.backends
    if asked is not None:
        return dict.fromkeys(("matmul", "conv", "rnn"), "tf32" if asked else "ieee")
    now = {
        "matmul": own.cuda.matmul.fp32_precision,
        "conv": own.cudnn.conv.fp32_precision,
        "rnn": own.cudnn.rnn.fp32_precision,
    }
    return {name: "ieee" if word == "none" else word for name, word in now.items()}


@contextmanager
def float32_products(asked: bool | None) -> Iterator[None]:
    """Let cuda multiply float32 numbers in TF32, or not, for the block; None: as torch has it."""
    if asked is None:
        yield
        return
    import torch

    own: Any = torch.backends
    older: list[Callable[[], None]] = []  # each puts one of the older settings back
    with suppress(RuntimeError):  # the two disagree, as somebody has used the newer one alone
        whole = torch.get_float32_matmul_precision()
        older.append(partial(torch.set_float32_matmul_precision, whole))
    with suppress(RuntimeError):
        older.append(partial(setattr, own.cudnn, "allow_tf32", own.cudnn.allow_tf32))
    places = (own.cuda.matmul, own.cudnn.conv, own.cudnn.rnn, own.mkldnn.matmul)
    inherited = own.fp32_precision  # a place that has it goes on with what is set there later
    words = [place.fp32_precision for place in places]
    before = ["none" if word == inherited else word for word in words]
    torch.set_float32_matmul_precision("high" if asked else "highest")
    own.cudnn.allow_tf32 = asked
    own.cudnn.conv.fp32_precision = own.cudnn.rnn.fp32_precision = "tf32" if asked else "ieee"
    try:
        yield
    finally:
        for put_back in older:
            put_back()
        for place, word in zip(places, before, strict=True):
            place.fp32_precision = word
