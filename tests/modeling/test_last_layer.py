"""The last layer's network at the positions that are read: the same numbers, from less work."""

from __future__ import annotations

import pytest
import torch
from llmft_adapters.lora import Lora
from llmft_adapters.prefix import Prefix
from llmft_adapters.prompt import PromptTuning
from llmft_adapters.ptuning import PTuning

from llmft.modeling import attention, forward, last_layer
from tests.modeling.test_forward import ARCHITECTURES, rows, tiny

WITHOUT_ONE = {"opt"}
"""Architectures whose layers keep no such network by itself."""


def trained(architecture):
    attention.register()
    model = tiny(architecture)
    model.set_attn_implementation(attention.NAME)
    return model


def nll_and_gradients(model, batch):
    model.zero_grad()
    nll_N = forward.label_nll(model, batch).nll_N
    nll_N.sum().backward()
    return nll_N.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def widths(model):
    """Return at how many positions each layer's network was computed, as it is called."""
    seen = []
    for layer in model.modules():
        if isinstance(getattr(layer, "mlp", None), torch.nn.Module):
            first = next(m for m in layer.mlp.modules() if not list(m.children()))
            first.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    return seen


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_and_gradients_are_those_of_the_whole_layer(architecture, monkeypatch):
    model, batch = trained(architecture), rows()
    narrow = nll_and_gradients(model, batch)
    monkeypatch.setattr(last_layer, "MOST", 0.0)  # nothing is left out
    whole = nll_and_gradients(model, batch)
    torch.testing.assert_close(narrow, whole, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_what_is_read_is_computed(architecture):
    model, batch = trained(architecture), rows()
    seen = widths(model)
    forward.label_nll(model, batch)
    labels, tokens = sum(row.n_labels for row in batch), sum(len(r.input_ids) for r in batch)
    expected = [] if architecture in WITHOUT_ONE else [tokens, labels]
    assert seen == expected
    forward.last_hidden(model, batch)
    assert seen[2:] == ([] if architecture in WITHOUT_ONE else [tokens, len(batch)])


def test_where_nearly_all_is_read_nothing_is_left_out():
    model = trained("llama")
    batch = [type(row)(row.input_ids, row.input_ids) for row in rows(lengths=(9, 20))]
    seen = widths(model)
    forward.label_nll(model, batch)
    assert seen == [29, 29]


def test_layers_that_are_computed_again_in_the_backward_pass_stay_whole():
    model, batch = trained("llama"), rows()
    expected = nll_and_gradients(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    seen = widths(model)
    found = nll_and_gradients(model, batch)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
    assert len(set(seen)) == 1


def test_the_layer_is_as_it_was_afterwards():
    model = trained("llama")
    network = model.model.layers[-1].mlp
    forward.label_nll(model, rows())
    assert "forward" not in vars(network)
    own = network.forward
    network.forward = own  # as tools that patch a model do
    forward.label_nll(model, rows())
    assert vars(network)["forward"] is own


@pytest.mark.parametrize("method", ["prompt", "ptuning", "prefix", "lora"])
def test_virtual_tokens_among_the_rows_change_no_position(method, monkeypatch):
    adapter = {"prompt": PromptTuning, "ptuning": PTuning, "prefix": Prefix, "lora": Lora}[method]
    options = {} if method == "lora" else {"num_virtual_tokens": 3}
    model = adapter(adapter.Config(method=method, **options)).attach(trained("llama"))
    narrow = forward.label_nll(model, rows()).nll_N
    monkeypatch.setattr(last_layer, "MOST", 0.0)
    torch.testing.assert_close(narrow, forward.label_nll(model, rows()).nll_N)
