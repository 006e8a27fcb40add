"""A base with stretched positions: trained on, put on, merged and handed on with the same ones."""

from __future__ import annotations

import re

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from llmft.api.errors import CheckpointError, EnvironmentFault
from llmft.api.model_settings import ModelSource
from llmft.engine.session import run_recipe
from llmft.exporting.folders import export
from llmft.inference.trained import trained_stage
from llmft.modeling.base_model import BaseModel
from llmft.modeling.tiny_models import tiny_gpt2, tiny_llama, tiny_model_folder
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.verifying.export import verify_export

YARN = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base for rows of 32 tokens, in which it shows where a token stands."""
    model = tiny_llama()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                weight.mul_(20)
    model.config.max_position_embeddings = 32
    return tiny_model_folder(tmp_path_factory.mktemp("short"), model)


@pytest.fixture(scope="module")
def stretched(train, base):
    return train(path=str(base), rope_scaling=YARN)


def ids(length: int = 100) -> torch.Tensor:
    return torch.randint(0, 256, (1, length), generator=torch.Generator().manual_seed(0))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids()).logits


@pytest.mark.parametrize("asked", [
    {"rope_type": "linear", "factor": 4.0},
    YARN,
    {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
], ids=lambda asked: asked["rope_type"])  # fmt: skip
def test_positions_are_those_of_transformers(base, asked):
    source = BaseModel(ModelSource(path=str(base), rope_scaling=asked))
    assert source.positions == 128
    config = AutoConfig.from_pretrained(base)
    theta = config.rope_parameters["rope_theta"]
    config.rope_parameters = {**asked, "rope_theta": theta}
    if asked["rope_type"] != "linear":
        config.rope_parameters["original_max_position_embeddings"] = 32
    plain = AutoModelForCausalLM.from_pretrained(base, config=config).eval()
    ours = logits(source.load({}, varlen=False).eval())
    assert torch.allclose(ours, logits(plain), atol=1e-5)
    unscaled = BaseModel(ModelSource(path=str(base))).load({}, varlen=False).eval()
    assert not torch.allclose(ours, logits(unscaled), atol=1e-2)


def test_linear_is_every_position_divided(base):
    asked = {"rope_type": "linear", "factor": 4.0}
    ours = BaseModel(ModelSource(path=str(base), rope_scaling=asked)).load({}, varlen=False)
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        found = plain(
            input_ids=ids(), position_ids=torch.arange(100.0)[None] / 4.0,
            attention_mask=torch.ones(1, 100),
        ).logits  # fmt: skip
    assert torch.allclose(logits(ours.eval()), found, atol=1e-5)


def test_the_adapter_goes_on_a_plain_base_as_it_is_told(stretched, base, tmp_path):
    stage = trained_stage(stretched)
    ours = logits(stage.model())
    made = export(stage, "peft", tmp_path / "out")
    config = AutoConfig.from_pretrained(base)
    for line in re.findall(r"config\.\w+ = [^;]+", made.notes[0]):
        exec(line, {"config": config})
    plain = AutoModelForCausalLM.from_pretrained(base, config=config)
    assert torch.allclose(logits(PeftModel.from_pretrained(plain, made.folder).eval()), ours,
                          atol=1e-5)  # fmt: skip
    card = (made.folder / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.S)[1]
    code = re.sub(r'base = ".*?"', f"base = {str(base)!r}", code)
    code = re.sub(r'PeftModel.from_pretrained\(model, ".*?"\)',
                  f"PeftModel.from_pretrained(model, {str(made.folder)!r})", code)  # fmt: skip
    names: dict = {}
    exec(code, names)
    assert torch.allclose(logits(names["model"]), ours, atol=1e-5)


def test_exports_answer_as_the_run_does(stretched, tmp_path):
    stage = trained_stage(stretched)
    merged = export(stage, "hf", tmp_path / "merged").folder
    plain = AutoModelForCausalLM.from_pretrained(merged).eval()
    assert torch.allclose(logits(plain), logits(stage.model()), atol=1e-4)
    adapter = export(stage, "peft", tmp_path / "adapter").folder
    for folder in (merged, adapter):
        assert verify_export(stage, folder, prompts=2, max_new_tokens=4).fine
    served = export(stage, "vllm", tmp_path / "served")
    assert "--hf-overrides" in served.command
    assert '"factor": 4.0' in served.command
    assert not served.notes


def test_a_stage_goes_on_from_one_of_the_same_positions_only(stretched, base, tmp_path):
    text = (stretched / "resolved.yaml").read_text()
    again = text.replace("name: sft", "name: more", 1).replace("factor: 4.0", "factor: 8.0")
    again = again.replace("start_from: null", f"start_from: run:{stretched.name}/sft", 1)
    path = tmp_path / "again.yaml"
    path.write_text(again)
    with pytest.raises(CheckpointError, match="other positions of the base") as caught:
        run_recipe(load_recipe(path, Registry.discover()))
    assert caught.value.faults[0].code == "E405"


def test_what_cannot_be_stretched_is_named(stretched, tmp_path):
    asked = {"rope_type": "linear", "factor": 2.0}
    learnt = tiny_model_folder(tmp_path / "learnt", tiny_gpt2())
    with pytest.raises(EnvironmentFault, match="cannot be stretched") as caught:
        _ = BaseModel(ModelSource(path=str(learnt), rope_scaling=asked)).config
    assert caught.value.faults[0].path == "model.rope_scaling"
    merged = export(trained_stage(stretched), "hf", tmp_path / "merged").folder
    with pytest.raises(EnvironmentFault, match=r"stretched already \(yarn, factor 4.0\)"):
        _ = BaseModel(ModelSource(path=str(merged), rope_scaling=asked)).config
    further = {**YARN, "factor": 8.0, "original_max_position_embeddings": 32}
    config = BaseModel(ModelSource(path=str(merged), rope_scaling=further)).config
    assert config.max_position_embeddings == 256
    assert config.rope_parameters["factor"] == 8.0
