"""Gradient checkpointing, held against torch's own and against keeping everything."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from llmft.modeling.recompute import _recomputed, checkpoint_layers, given_tensors, recomputed
from llmft.modeling.tiny_configs import small_config
from llmft.system.architectures import ARCHITECTURES_BY_NAME
from tests.extended import extended


class Layer(nn.Module):
    """Dropout, a product and a frozen product, and a count of its runs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.frozen, self.runs = nn.Linear(6, 6), nn.Linear(6, 6), 0
        self.frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        x = nn.functional.dropout(self.linear(x).tanh() * scale, 0.3)
        return self.frozen(x).sigmoid()


def _gradients(way: str, autocast: bool) -> list[torch.Tensor]:
    torch.manual_seed(1)
    layers, x = [Layer() for _ in range(3)], torch.randn(4, 6)
    scale = torch.ones(6, requires_grad=True)
    copies: list[weakref.ref[torch.Tensor]] = []

    def put(x: torch.Tensor) -> Callable[[], torch.Tensor]:
        copy = x.clone()
        copies.append(weakref.ref(copy))
        return copy.clone

    wrap = {
        "put away": lambda layer, x: _recomputed(put, layer, x, scale=scale),
        "kept": lambda layer, x: layer(x, scale=scale),
        "torch": lambda layer, x: checkpoint(layer, x, scale=scale, use_reentrant=False),
        "ours": lambda layer, x: recomputed(layer, x, scale=scale),
    }[way]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for layer in layers:
            x = wrap(layer, x)
    after = torch.rand(3)
    x.float().square().sum().backward()
    assert not torch.equal(after, torch.rand(3)), "the random numbers go on where they were"
    assert len(copies) == (3 if way == "put away" else 0)
    assert not any(copy() is not None for copy in copies), "given back after the backward pass"
    assert {layer.runs for layer in layers} == ({1} if way == "kept" else {2})
    return [scale.grad, *(p.grad for layer in layers for p in layer.linear.parameters())]


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_gradients_have_the_bits_of_those_where_all_is_kept(autocast: bool) -> None:
    """With dropout and autocast, and a trained tensor given by name; torch's own agree."""
    ways = ("kept", "torch", "ours", "put away")
    kept, torchs, ours, put = (_gradients(way, autocast) for way in ways)
    for a, b, c, d in zip(kept, torchs, ours, put, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, c)
        assert torch.equal(c, d)


def test_random_numbers_after_the_backward_pass_are_those_without_it() -> None:
    """What is drawn in the second run is not taken from what comes after."""
    drawn = []
    for run in (lambda layer, x, scale: layer(x, scale=scale), recomputed):
        torch.manual_seed(2)
        layer = Layer()
        loss = run(layer, torch.ones(2, 6), scale=torch.ones(6)).sum()
        torch.rand(3)  # what is drawn in between counts, too
        loss.backward()
        drawn.append(torch.rand(2))
    assert torch.equal(*drawn)


def test_nothing_of_a_layer_is_kept_but_its_input() -> None:
    """Bytes that the graph holds between the passes; all are given back after the second."""
    freed: list[int] = []

    class Note(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
            freed.append(sum(ref() is not None for ref in alive))
            return grad

    alive: list[weakref.ref[torch.Tensor]] = []

    def layer(x: torch.Tensor) -> torch.Tensor:
        middle = (x * 2).exp()
        alive.append(weakref.ref(middle))
        return middle.sin()

    x = torch.ones(3, requires_grad=True)
    out = recomputed(layer, Note.apply(recomputed(layer, x)))
    assert [ref() for ref in alive] == [None, None]
    out.sum().backward()
    assert freed == [0], "what the second layer computed again is gone when the first's turn comes"
    assert torch.allclose(x.grad, torch.autograd.functional.jacobian(
        lambda x: layer(layer(x)), x.detach()).diagonal())  # fmt: skip


def test_what_is_put_away_is_not_kept_where_it_was() -> None:
    """Of each layer's input only the copy lives between the passes, one of them at a time after."""
    held: list[weakref.ref[torch.Tensor]] = []
    back: list[int] = []

    def put(x: torch.Tensor) -> Callable[[], torch.Tensor]:
        copy = x.to("cpu", torch.float64)  # as from another device

        def brought() -> torch.Tensor:
            back.append(sum(ref() is not None for ref in held))
            return copy.to(x_dtype)

        return brought

    x_dtype = torch.float32
    x = torch.ones(3, requires_grad=True) * 1
    first = weakref.ref(x)
    held.append(first)
    for _ in range(3):
        x = _recomputed(put, torch.exp, x)
        held.append(weakref.ref(x))
    loss = x.log().sum()
    del x
    assert [ref() is not None for ref in held] == [False] * 3 + [True], "that is no input"
    loss.backward()
    assert len(back) == 3


def test_a_layer_without_an_input_by_place_is_refused() -> None:
    with pytest.raises(RuntimeError, match="set activation_offloading: false"):
        _recomputed(lambda x: lambda: x, torch.exp, input=torch.ones(2, requires_grad=True))


@pytest.mark.parametrize(
    ("again", "count"),
    [(lambda x: x.exp().sin(), 2), (lambda x: x[:1].exp(), 1)],
    ids=["more tensors", "smaller ones"],
)
def test_a_layer_that_does_something_else_the_second_time_is_an_error(again, count) -> None:
    """Gradients of other tensors would be wrong without a word."""
    runs = []

    def layer(x: torch.Tensor) -> torch.Tensor:
        runs.append(0)
        return x.exp() if len(runs) == 1 else again(x)

    out = recomputed(layer, torch.ones(2, requires_grad=True))
    with pytest.raises(RuntimeError, match=f"1 the first time, {count} the second"):
        out.sum().backward()


def test_the_device_is_that_of_what_a_layer_is_given_by_any_way() -> None:
    """By place, by name, and bound before, as transformers binds a layer's names."""
    x = torch.ones(2, device="meta")
    ways = [(len, (x,), {}), (len, (1,), {"x": x}), (partial(len, x=x), (), {}), (len, (), {})]
    found = [[t.device.type for t in given_tensors(*way)] for way in ways]
    assert found == [["meta"], ["meta"], ["meta"], []]


def test_a_model_is_trained_through_it() -> None:
    """Each layer of a transformers model runs twice, and gradients are those without."""
    from transformers import LlamaConfig, LlamaForCausalLM

    grads = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=20, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1,
        )  # fmt: skip
        model = LlamaForCausalLM(config).train()
        if checkpointed:
            checkpoint_layers(model)
        calls = []
        model.model.layers[1].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(0))
        ids = torch.arange(12).view(2, 6)
        model(input_ids=ids, labels=ids).loss.backward()
        assert len(calls) == 1 + checkpointed
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


KINDS = sorted({"olmo2", *(each.model_type for each in ARCHITECTURES_BY_NAME)})


@pytest.mark.parametrize("kind", extended(KINDS, ["gpt2", "llama", "qwen3"]))
def test_each_layer_of_a_model_puts_its_hidden_states_away(kind) -> None:
    """One tensor (batch, tokens, width) for each layer, and the same gradients."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config(AutoConfig.for_model(kind))).train()
    ids, put, grads = torch.arange(4, 16).view(2, 6), [], []

    def away(x: torch.Tensor) -> Callable[[], torch.Tensor]:
        put.append(x.shape)
        return x.clone().clone

    for checkpointed in (False, True):
        if checkpointed:
            checkpoint_layers(model, put=away)
        model.zero_grad()
        torch.manual_seed(1)
        model(input_ids=ids, labels=ids).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert [len(shape) for shape in put] == [3] * model.config.num_hidden_layers
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
