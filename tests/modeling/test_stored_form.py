"""Bases whose files hold something else than plain numbers: refused by name, or loaded as said."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from llmft.api.errors import EnvironmentFault
from llmft.api.model_settings import ModelSource
from llmft.cli.main import main
from llmft.modeling.base_model import BaseModel
from llmft.modeling.stored_form import form_misfit
from llmft.modeling.tiny_models import tiny_model_folder

NF4 = {
    "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "float32",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    return tiny_model_folder(tmp_path / "model")


def with_form(folder, form):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": form}))


@pytest.mark.parametrize(("form", "said"), [
    ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "GPTQ"),
    ({"quant_method": "awq", "bits": 4, "version": "gemm"}, "AWQ"),
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "FP8"),
    ({"quant_method": "fbgemm_fp8"}, "FP8 (FBGEMM)"),
    ({"quant_method": "hqq", "quant_config": {}}, "HQQ"),
    ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, "MXFP4"),
    ({"quant_method": "torchao", "quant_type": {"default": {}}}, "torchao"),
    ({"quant_method": "bitnet"}, "BitNet"),
    ({"quant_method": "compressed-tensors", "config_groups": {}}, "compressed-tensors"),
    ({"quant_method": "next"}, "a form called 'next'"),
    ({"bits": 4}, "a form that its config.json does not name"),
])  # fmt: skip
def test_a_stored_form_that_is_not_trained_on_is_refused_before_weights_load(folder, form, said):
    (folder / "model.safetensors").unlink()
    with_form(folder, form)
    with pytest.raises(EnvironmentFault) as error:
        _ = BaseModel(ModelSource(path=str(folder))).config
    assert error.value.faults[0].code == "E231"
    assert error.value.faults[0].what == (
        f"the weights in '{folder}' are stored by {said}, on which nothing here trains"
    )


def test_validate_names_the_form_at_the_model(folder, capsys):
    with_form(folder, {"quant_method": "gptq", "bits": 4})
    assert main(["validate", "quickstart", "--model", "--set", f"model.path={folder}"]) == 4
    assert "model.path: the weights in" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", torch.float32])
def test_what_bitsandbytes_stored_is_to_be_said_by_the_recipe(dtype):
    stored = {"quant_method": "bitsandbytes", "load_in_8bit": False, **NF4}
    config = SimpleNamespace(quantization_config=stored | {"bnb_4bit_compute_dtype": dtype})
    assert form_misfit(config, NF4) is None
    what, fix = form_misfit(config, {})
    assert "stored by bitsandbytes in 4 bits" in what
    assert fix == (
        "write model.quantization: {load_in_4bit: true, bnb_4bit_quant_type: nf4,"
        " bnb_4bit_use_double_quant: true, bnb_4bit_compute_dtype: float32}"
    )
    what, _ = form_misfit(config, NF4 | {"bnb_4bit_quant_type": "fp4"})
    assert what.endswith("(bnb_4bit_quant_type)")
    of_four = {"bnb_4bit_quant_type": "fp4"}  # is written beside 8 bits, too, where it says nothing
    eight = SimpleNamespace(
        quantization_config={"load_in_8bit": True, "load_in_4bit": False, **of_four}
    )
    assert form_misfit(eight, {"load_in_8bit": True}) is None  # older files name no method
    assert form_misfit(eight, NF4)[1].endswith("{load_in_4bit: false, load_in_8bit: true}")
    assert form_misfit(SimpleNamespace(), NF4) is None  # quantised when it is loaded


def test_a_base_that_bitsandbytes_stored_is_the_one_that_is_quantised_when_loaded(folder, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    asked = BitsAndBytesConfig(**NF4)
    made = AutoModelForCausalLM.from_pretrained(folder, quantization_config=asked)
    made.save_pretrained(tmp_path / "stored")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "stored")
    rows = torch.arange(12)[None]
    logits = []
    for place in (folder, tmp_path / "stored"):
        model = BaseModel(ModelSource(path=str(place))).load(NF4, varlen=False)
        assert any(type(m).__name__ == "Linear4bit" for m in model.modules())
        with torch.no_grad():
            logits.append(model(input_ids=rows).logits)
    assert torch.equal(*logits)
