"""DoRA: PEFT's numbers and gradients, without PEFT's work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from llmft_adapters.dora import Dora
from llmft_adapters.dora import layer as dora_layer
from llmft_adapters.dora.layer import updated_norms
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from llmft.testing import measures, tiny_gpt2, tiny_llama
from tests.plugins.adapters.conftest import quantised


def dora(**settings: Any) -> Dora:
    return Dora(Dora.Config(method="dora", **settings))


def theirs(adapter: Dora, base: Any) -> Any:
    measures.seed()
    return get_peft_model(base, adapter.peft_config(base))


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
