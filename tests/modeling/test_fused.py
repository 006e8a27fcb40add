"""Fused kernels are refused where they cannot run, and proved where they can.

A module stands in for liger-kernel, whose kernels need a GPU; torch.compile's are the real ones.
"""

from __future__ import annotations

import sys
from types import MethodType, ModuleType

import pytest
import torch
from transformers.models.llama import modeling_llama

from llmft.api.errors import EnvironmentFault
from llmft.api.model_settings import ModelSource
from llmft.modeling import fused, levers
from llmft.modeling.base_model import BaseModel
from llmft.modeling.levers import ALL, levers_of
from llmft.modeling.tiny_models import tiny_model_folder
from llmft.runs.upstream import twin

ROTATION = modeling_llama.apply_rotary_pos_emb


class LigerMLP(modeling_llama.LlamaMLP):
    """What is there for models to come."""


@pytest.fixture
def liger(monkeypatch):
    """A liger-kernel whose norm is as wrong as `.off` says, on a machine with a GPU."""

    def rotation(*words, **options):
        package.rotations += 1
        return ROTATION(*words, **options)

    def norm(self, hidden):
        return type(self).forward(self, hidden) * (1 + package.off)

    def to_llama(model, rope, rms_norm, swiglu, fused_linear_cross_entropy):
        assert (rope, rms_norm, swiglu, fused_linear_cross_entropy) == (True, True, True, False)
        modeling_llama.apply_rotary_pos_emb, modeling_llama.LlamaMLP = rotation, LigerMLP
        for module in model.modules():
            if isinstance(module, modeling_llama.LlamaRMSNorm):
                module.forward = MethodType(norm, module)

    def to_instance(model, **kwargs):
        names = ("rope", "rms_norm", "swiglu", "fused_linear_cross_entropy")
        to_llama(model=model, **{name: kwargs[name] for name in names})

    package, api, patch = (
        ModuleType(f"liger_kernel{name}") for name in ("", ".transformers", ".monkey_patch")
    )
    package.off = package.rotations = 0
    api._apply_liger_kernel_to_instance = to_instance
    patch.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": to_llama}
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", api)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", patch)
    monkeypatch.setattr(fused, "find_spec", lambda name: name)
    monkeypatch.setattr(fused, "device", lambda: "cuda")
    monkeypatch.setattr(levers, "_known", {})
    monkeypatch.setenv("LLMFT_CACHE", "off")
    yield package
    modeling_llama.apply_rotary_pos_emb, modeling_llama.LlamaMLP = ROTATION, LigerMLP.__base__
    fused._PUT_IN.clear()


def load(folder, how):
    return BaseModel(ModelSource(path=str(folder), fused=how)).load({}, varlen=False)


def loss(model):
    ids = torch.arange(5, 25)[None]
    return float(model(input_ids=ids, labels=ids).loss)


def test_where_liger_cannot_run_it_is_refused_before_weights_are_loaded(
    liger, tmp_path, monkeypatch
):
    folder = tiny_model_folder(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(EnvironmentFault, match=r"E206.*no kernels for the type 'gpt2'.*llama"):
        fused.check_fused("liger", "gpt2")
    monkeypatch.setattr(fused, "device", lambda: "cpu")
    with pytest.raises(EnvironmentFault, match=r"E206.*liger needs a GPU.*compile") as refused:
        load(folder, "liger")
    assert refused.value.faults[0].path == "model.fused"
    monkeypatch.setattr(fused, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match=r"E206.*pip install 'llmft\[liger\]'"):
        load(folder, "liger")


def test_kernels_that_agree_are_taken_and_go_with_the_model_that_asked(liger, tmp_path):
    folder = tiny_model_folder(tmp_path)
    plain = load(folder, "none")
    model = load(folder, "liger")
    assert levers_of(model) == levers_of(plain)
    assert modeling_llama.LlamaMLP is LigerMLP.__base__  # models to come are not asked for it
    tried = liger.rotations
    assert tried > 0
    assert loss(twin(model)) == loss(model)
    assert liger.rotations > tried
    assert twin(model).model.norm.forward.__func__.__name__ == "norm"
    load(folder, "none")
    assert modeling_llama.apply_rotary_pos_emb is ROTATION


def test_kernels_that_are_wrong_are_refused_by_name(liger, tmp_path):
    liger.off = 0.01
    with pytest.raises(EnvironmentFault, match=r"E201.*fused.*liger does not give.*'llama'.*none"):
        load(tiny_model_folder(tmp_path), "liger")


@pytest.mark.extended
def test_what_torch_compiles_gives_the_same_loss_and_a_copy_has_it_too(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMFT_CACHE", "off")
    folder = tiny_model_folder(tmp_path)
    model = load(folder, "compile")
    assert levers_of(model) == ALL
    calls = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert calls > 0  # the trial took them
    assert loss(model) == pytest.approx(loss(load(folder, "none")), rel=1e-5)
    own = [m for m in twin(model).modules() if m._compiled_call_impl is not None]
    assert len(own) == 2 * model.config.num_hidden_layers + 1
