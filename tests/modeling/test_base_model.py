"""Loading a base model: what is refused before anything of it could run."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from llmft.api.errors import EnvironmentFault, TrustError
from llmft.api.model_settings import ModelSource
from llmft.modeling.base_model import BaseModel, max_positions
from llmft.modeling.tiny_models import tiny_model_folder
from llmft.system.quiet import captured_output


@pytest.fixture
def folder(tmp_path):
    return tiny_model_folder(tmp_path)


def edit(path, **changes):
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | changes))


def test_a_loaded_base_is_frozen_and_of_the_asked_type(folder):
    model = BaseModel(ModelSource(path=str(folder), dtype="bfloat16")).load({}, varlen=True)
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "llmft_varlen"


def test_an_explicit_attention_is_kept(folder):
    source = ModelSource(path=str(folder), attn_implementation="eager")
    assert BaseModel(source).load({}, varlen=True).config._attn_implementation == "eager"


def test_the_empty_base_has_the_modules_and_no_weights(folder):
    model = BaseModel(ModelSource(path=str(folder))).empty()
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pkl"])
def test_s4_pickled_weights_are_refused_unopened(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"\x80\x04 would run anything")
    with pytest.raises(TrustError, match="pickle") as caught:
        BaseModel(ModelSource(path=str(folder))).load({}, varlen=True)
    assert caught.value.exit_code == 8


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_s5_a_model_with_code_of_its_own_is_refused(folder, name):
    edit(folder / name, auto_map={"AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(TrustError, match="auto_map"):
        _ = BaseModel(ModelSource(path=str(folder))).config


def test_s5_attention_named_by_the_models_own_config_is_not_taken(folder):
    edit(folder / "config.json", attn_implementation="evil/kernel", _attn_implementation="evil/k")
    model = BaseModel(ModelSource(path=str(folder))).load({}, varlen=False)
    assert model.config._attn_implementation == "sdpa"


def test_s6_missing_tensors_are_listed(folder):
    edit(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(EnvironmentFault, match=r"missing .*layers\.2\..* and \d more"):
        BaseModel(ModelSource(path=str(folder))).load({}, varlen=True)


def test_s6_tensors_of_another_shape_are_an_error(folder):
    edit(folder / "config.json", vocab_size=299)
    with pytest.raises(
        EnvironmentFault, match=r"do not match its config: mismatched .*embed_tokens"
    ):
        BaseModel(ModelSource(path=str(folder))).load({}, varlen=True)


def test_a_model_that_is_no_decoder_is_refused_by_its_type(folder):
    (folder / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(EnvironmentFault, match="of the type 't5', which has no causal decoder"):
        BaseModel(ModelSource(path=str(folder))).empty()


def test_a_config_of_wrong_values_is_refused_with_the_one_that_is_wrong(folder):
    edit(folder / "config.json", hidden_size="wide")
    with pytest.raises(EnvironmentFault, match=r"hidden_size is .wide"):
        BaseModel(ModelSource(path=str(folder))).empty()


def test_what_upstream_logs_goes_to_the_log_and_not_to_the_terminal(folder, capfd, tmp_path):
    edit(folder / "config.json", num_hidden_layers=3)
    with captured_output(tmp_path / "log.txt"), pytest.raises(EnvironmentFault):
        BaseModel(ModelSource(path=str(folder))).load({}, varlen=True)
    assert "LOAD REPORT" in (tmp_path / "log.txt").read_text()
    assert capfd.readouterr().err == ""


def test_damaged_weights_are_an_error(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(EnvironmentFault) as caught:
        BaseModel(ModelSource(path=str(folder))).load({}, varlen=True)
    assert str(folder) in caught.value.faults[0].what


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("./none", "no folder './none'"),
        ("my model", "no folder 'my model'"),
        ("a--b/c", "no folder 'a--b/c'"),
        ("C:models", "no folder 'C:models'"),
        ("embedded:nothing", "nothing"),
        ("nobody/nothing-at-all", "hf download nobody/nothing-at-all"),
    ],
)
def test_n4_a_model_that_is_not_there_says_how_to_get_it(path, said):
    with pytest.raises(EnvironmentFault, match=said):
        _ = BaseModel(ModelSource(path=path)).config


def test_a_chat_template_may_be_given(folder):
    tokenizer = BaseModel(ModelSource(path=str(folder), chat_template="{{ 'x' }}")).tokenizer
    turns = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "x"


@pytest.mark.parametrize(("stated", "limit"), [(64, 64), (-1, None), (None, None), (0, None)])
def test_a_model_that_states_no_limit_of_positions_has_none(stated, limit):
    """XLNet states -1, and rows were cut to it."""
    assert max_positions(SimpleNamespace(max_position_embeddings=stated)) == limit
