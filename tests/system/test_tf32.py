"""How float32 numbers are multiplied for a while, and that it is as before after that."""

from __future__ import annotations

import pytest
import torch

from llmft.system import machine, tf32

OWN = torch.backends


def state() -> list[object]:
    """Return what both of torch's interfaces say; None where it refuses to read the older one."""
    found: list[object] = [
        place.fp32_precision
        for place in (OWN.cuda.matmul, OWN.cudnn.conv, OWN.cudnn.rnn, OWN.mkldnn.matmul)
    ]
    for read in (
        torch.get_float32_matmul_precision,
        lambda: OWN.cuda.matmul.allow_tf32,
        lambda: OWN.cudnn.allow_tf32,
    ):
        try:
            found.append(read())
        except RuntimeError:
            found.append(None)
    return found


BEFORE = {
    "as torch starts": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "the older interface": lambda: setattr(OWN.cuda.matmul, "allow_tf32", True),
    "all of the newer one": lambda: setattr(OWN, "fp32_precision", "tf32"),
    "a part of the newer one": lambda: setattr(OWN.cudnn.conv, "fp32_precision", "ieee"),
}

INHERITS = ("as torch starts", "all of the newer one", "a part of the newer one")


@pytest.fixture
def as_torch_starts():
    whole, every = torch.get_float32_matmul_precision(), OWN.fp32_precision
    places = (OWN.cuda.matmul, OWN.cudnn.conv, OWN.cudnn.rnn, OWN.mkldnn.matmul)
    words = [place.fp32_precision for place in places]
    yield
    OWN.fp32_precision = every
    torch.set_float32_matmul_precision(whole)
    OWN.cudnn.allow_tf32 = True
    for place, word in zip(places, words, strict=True):
        place.fp32_precision = word


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("asked", [True, False])
def test_products_are_as_asked_and_then_as_before(as_torch_starts, before, asked):
    BEFORE[before]()
    then = state()
    word = "tf32" if asked else "ieee"
    with tf32.float32_products(asked):
        assert state()[:3] == [word] * 3
        assert state()[4:] == ["high" if asked else "highest", asked, asked]
        assert set(tf32.precision(asked).values()) == {word}
    unread = [now if was is None else was for was, now in zip(then, state(), strict=True)]
    assert state() == unread
    OWN.fp32_precision = "ieee"
    assert (OWN.cuda.matmul.fp32_precision == "ieee") == (before in INHERITS)


def test_an_error_puts_it_back_too(as_torch_starts):
    then = state()
    with pytest.raises(KeyError), tf32.float32_products(True):
        raise KeyError
    assert state() == then


def test_without_the_setting_nothing_is_touched(as_torch_starts):
    torch.set_float32_matmul_precision("high")
    then = state()
    with tf32.float32_products(None):
        assert state() == then
    assert tf32.precision(None) == {"matmul": "tf32", "conv": "tf32", "rnn": "tf32"}


@pytest.mark.parametrize(
    ("device", "capability", "why"),
    [
        ("cpu", (9, 0), "this machine computes without an NVIDIA GPU"),
        ("cuda:0", (7, 5), "Card has the compute capability 7.5"),
        ("cuda:0", (8, 0), ""),
        ("cuda:0", (12, 0), ""),
    ],
)
def test_a_gpu_that_has_none_is_named(monkeypatch, device, capability, why):
    monkeypatch.setattr(machine, "device", lambda: device)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert tf32.misfit() == why
