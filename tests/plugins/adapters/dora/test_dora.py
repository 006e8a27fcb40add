"""DoRA: PEFT's numbers and gradients, without PEFT's work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from llmft_adapters.dora import Dora
from llmft_adapters.dora import layer as dora_layer
from llmft_adapters.dora.layer import precise_product, updated_norms
from llmft_adapters.dora.linear import dropped_dora_linear
from llmft_adapters.lora.linear import by_hand
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from llmft.testing import measures, tiny_gpt2, tiny_llama
from tests.plugins.adapters.conftest import mask_of, quantised, with_our_masks


def dora(**settings: Any) -> Dora:
    return Dora(Dora.Config(method="dora", **settings))


def theirs(adapter: Dora, base: Any) -> Any:
    measures.seed()
    return with_our_masks(get_peft_model(base, adapter.peft_config(base)))


def ours(adapter: Dora, base: Any) -> Any:
    measures.seed()
    return adapter.attach(base)


def test_the_norms_by_hand() -> None:
    weight = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    A, B, scaling = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0], [1.0]]), 2.0
    # W + 2 B A = [[3, 4], [0, 5]]
    norms = updated_norms(weight.square().sum(dim=1), A @ weight.T, A, B, scaling)
    torch.testing.assert_close(norms, torch.tensor([5.0, 5.0]))


def test_the_norms_stay_finite_where_a_row_vanishes() -> None:
    weight, A, B = torch.ones(1, 2), torch.ones(1, 2), -torch.ones(1, 1)
    norms = updated_norms(weight.square().sum(dim=1), A @ weight.T, A, B, 1.0)
    assert torch.isfinite(1 / norms).all()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_logits_and_gradients_are_those_of_peft(make: Any, dropout: float) -> None:
    adapter = dora(r=4, lora_dropout=dropout, use_rslora=True)
    models = [ours(adapter, make()), theirs(adapter, make())]
    for model in models:
        measures.train(model, steps=4, learning_rate=1e-2)
        measures.nudge(model)
    assert measures.distance(*(measures.logits(model) for model in models)) <= 1e-5
    mine, its = (measures.gradients(model) for model in models)
    assert mine.keys() == its.keys()
    for name in mine:
        assert measures.distance(its[name], mine[name]) <= 1e-5, name


@pytest.mark.parametrize("kind", ["Linear", "Linear without bias", "Conv1D"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_layer_gives_peft_s_output_and_input_gradient(kind: str, dropout: float) -> None:
    found = []
    for make in (ours, theirs):
        torch.manual_seed(0)
        layer = Conv1D(24, 16) if kind == "Conv1D" else nn.Linear(16, 24, bias=kind == "Linear")
        if layer.bias is not None:
            nn.init.normal_(layer.bias)
        model = make(dora(r=3, lora_dropout=dropout, target_modules=["0"]), _Net(layer))
        measures.nudge(model)
        model.train()
        torch.manual_seed(5)
        x = torch.randn(2, 5, 16, requires_grad=True)
        out = model.base_model.model[0](x)
        out.square().sum().backward()
        found.append((out.detach(), x.grad))
    for mine, its in zip(*found, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pieces", [True, False])  # as on a CPU, and as on a GPU
def test_a_dropped_product_and_all_its_gradients_are_the_plain_ones(
    pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmft_adapters.dora.linear.draws_in_table", lambda _: pieces)
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, A, B, m = numbers(2, 7, 5), numbers(2, 5), numbers(4, 2), numbers(4)
    W, b, weight = numbers(4, 5), numbers(4), numbers(2, 7, 4)
    found = []
    for fast in (True, False):
        torch.manual_seed(3)
        x_, A_, B_, m_ = leaves = [t.clone().requires_grad_() for t in (x, A, B, m)]
        if fast:
            out = dropped_dora_linear(x_, W, b, A_, B_, 0.7, m_, 0.4, lambda: W)
        else:
            text = mask_of(x, 0.4, pieces) * x_
            update = 0.7 * (text @ A_.T) @ B_.T
            out = x_ @ W.T + (m_ - 1) * (text @ W.T) + m_ * update + b
        (out * weight).sum().backward()
        found.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain)


class _Net(nn.Sequential):
    def get_output_embeddings(self) -> None:
        return None

    def prepare_inputs_for_generation(self) -> None:
        return None


def test_it_starts_as_the_base_with_the_magnitude_of_its_rows() -> None:
    model = ours(dora(r=4), tiny_llama())
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    magnitude = layer.lora_magnitude_vector["default"].weight
    torch.testing.assert_close(magnitude, layer.base_layer.weight.norm(dim=1))
    assert measures.distance(measures.logits(tiny_llama()), measures.logits(model)) <= 1e-6


class _ByPointer(torch.optim.Optimizer):
    """Writes where torch does not see it, as bitsandbytes' kernels do."""

    def step(self) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            parameter.data += 0.1 * torch.sign(parameter.data + 0.05)


@pytest.mark.parametrize("training", [True, False])
def test_norms_are_made_once_an_update_and_never_stale(
    training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    whole = dora_layer.updated_norms
    monkeypatch.setattr(dora_layer, "updated_norms", lambda *of: made.append(1) or whole(*of))
    models = [make(dora(r=4), tiny_llama()) for make in (ours, theirs)]
    ids = torch.arange(6).unsqueeze(0)

    def by_pointer(model: Any) -> None:
        moved = [p for p in model.parameters() if p.requires_grad]
        _ByPointer(moved, {}).step()

    layers = sum(isinstance(layer.forward, dora_layer.DoraForward)
                 for layer in models[0].modules() if hasattr(layer, "lora_A"))  # fmt: skip
    for change in (measures.nudge, by_pointer, measures.nudge):
        made.clear()
        for model in models:
            change(model)
            model.train(training)
        logits = [model(input_ids=ids).logits for model in models]
        assert torch.equal(logits[0], models[0](input_ids=ids).logits)
        torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
        assert len(made) == layers > 0
    models[0].train(not training)
    models[0](input_ids=ids)
    assert len(made) == 2 * layers, "an evaluation in between changes no bit of a training"


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_on_a_4_bit_base_it_is_peft_s(tmp_path: Path, dropout: float) -> None:
    options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    options["bnb_4bit_compute_dtype"] = "float32"
    adapter = dora(r=4, lora_dropout=dropout)
    models = []
    for number, make in enumerate((ours, theirs)):
        base = quantised(tiny_llama(), tmp_path / str(number), **options)
        models.append(make(adapter, base))
        measures.nudge(models[-1])
    assert measures.distance(*(measures.logits(model) for model in models)) <= 1e-5
    mine, its = (measures.gradients(model) for model in models)
    for name in mine:
        assert measures.distance(its[name], mine[name]) <= 1e-5, name


def test_the_norms_of_16_bit_weights_are_those_of_float64() -> None:
    torch.manual_seed(0)
    W, A, B = torch.randn(40, 24).bfloat16(), torch.randn(4, 24), 0.1 * torch.randn(40, 4)
    own = torch.linalg.vector_norm(W, dim=1, dtype=torch.float32).square()
    with torch.autocast("cpu", torch.bfloat16), by_hand(A):
        norms = updated_norms(own, precise_product(A, W), A, B, 0.5)
    wanted = (W.double() + 0.5 * B.double() @ A.double()).norm(dim=1)
    torch.testing.assert_close(norms.double(), wanted, rtol=1e-6, atol=0)


def test_norms_under_autocast_are_those_without_it() -> None:
    model, found = ours(dora(r=4), tiny_llama()), []
    measures.nudge(model)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    for autocast in (False, True):
        layer.forward._last = None
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            layer(torch.randn(2, 5, layer.in_features))
        found.append(layer.forward._last[1])
    assert torch.equal(*found)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_on_an_8_bit_base_it_trains_where_peft_s_own_start_breaks_it(
    tmp_path: Path, dropout: float
) -> None:
    base = quantised(tiny_llama(), tmp_path / "base", load_in_8bit=True)
    plain = measures.logits(base)
    model = ours(dora(r=4, lora_dropout=dropout), base)
    # The inputs of an 8-bit product are rounded, and DoRA's norms come from the weight as stored.
    assert measures.distance(plain, measures.logits(model)) <= 1e-3
    before = measures.loss(model)
    measures.train(model, steps=8, learning_rate=1e-2)
    assert measures.loss(model) < before


def test_plain_peft_loads_what_is_saved(tmp_path: Path) -> None:
    from peft import PeftModel

    adapter = dora(r=4)
    model = ours(adapter, tiny_gpt2())
    measures.train(model, steps=3, learning_rate=1e-2)
    folder = measures.saved(adapter, model, tmp_path)
    loaded = PeftModel.from_pretrained(tiny_gpt2(), folder).eval()
    assert measures.distance(measures.logits(loaded), measures.logits(model)) <= 1e-5


def test_offloading_is_refused_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (fault,) = dora(ephemeral_gpu_offload=True).check(tiny_llama())
    assert fault[0] == ("ephemeral_gpu_offload",)
    assert "no GPU" in fault[1]
