"""Each shortcut of the forward pass is proved against each row alone in plain transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

from llmft.api import EnvironmentFault
from llmft.api.model_settings import ModelSource
from llmft.modeling import attention, base_model, levers, tiny_configs
from llmft.modeling.base_model import BaseModel
from llmft.modeling.lever_trial import Trial
from llmft.modeling.tiny_configs import small_config
from llmft.testing import tiny_model_folder

SAMPLE = {
    "llama": (True, True, True),
    "gpt_oss": (False, True, True),  # sinks
    "roberta": (False, True, False),  # positions from padding_idx + 1
    "granitemoehybrid": (False, True, False),  # layers that carry a state
    "phimoe": (False, True, True),  # windows in the mask only
}
"""A covering sample: padding-free rows, the loss from the head's input, cached decoding."""


def trial(kind, **settings):
    config = small_config(CONFIG_MAPPING[kind](**settings))
    if getattr(config, "is_decoder", None) is False:
        config.is_decoder = True
    return Trial.of(config, "eager" if kind in ("gpt_oss", "cpmant", "xlnet") else "sdpa")


@pytest.mark.parametrize("kind", SAMPLE)
def test_a_covering_sample_of_architectures(kind):
    windows = {"sliding_window": 64} if kind == "phimoe" else {}
    found = levers.found_by(trial(kind, **windows), "float32")
    assert not found.wrong_padded
    assert (found.padding_free, found.frozen_head, found.cached_decoding) == SAMPLE[kind]


def test_a_cap_on_the_logits_that_no_table_knows_is_found():
    found = levers.found_by(trial("recurrent_gemma"), "float32")
    assert not found.frozen_head
    assert not found.padding_free
    assert found.remark("recurrent_gemma").startswith("left out")


def test_a_model_that_keeps_the_state_of_its_last_pass_can_be_copied():
    one = trial("recurrent_gemma")
    held = [v for m in one.model.modules() for v in vars(m).values() if torch.is_tensor(v)]
    assert any(tensor.grad_fn is not None for tensor in held)
    made = one.copied_model()
    assert all(map(torch.equal, made.state_dict().values(), one.model.state_dict().values()))


@pytest.mark.parametrize("lever", ["last_layer", "frozen_head", "identity_head"])
def test_a_path_that_is_wrong_is_left_out(monkeypatch, lever):
    from llmft.modeling import forward

    whole = forward.logits_at

    def wrong(model, inputs, keep):
        on = getattr(levers.levers_of(model), lever)
        return whole(model, inputs, keep) * (1.01 if on else 1.0)

    monkeypatch.setattr(forward, "logits_at", wrong)
    found = levers.found_by(trial("llama"), "float32")
    assert not getattr(found, lever)


def test_what_was_found_is_kept_on_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("LLMFT_CACHE", str(tmp_path))
    monkeypatch.setattr(levers, "_known", {})
    config = small_config(CONFIG_MAPPING["llama"]())
    first = levers.proven(config, "sdpa")
    monkeypatch.setattr(levers, "_known", {})
    monkeypatch.setattr(levers, "_tried", lambda *given: 1 / 0)
    assert levers.proven(config, "sdpa") == first
    assert len(list((tmp_path / "levers").glob("*.json"))) == 1


def test_a_model_of_which_no_small_copy_can_be_made_is_refused_before_its_weights_are_loaded(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("LLMFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(levers, "_known", {})
    base = BaseModel(ModelSource(path=str(tiny_model_folder(tmp_path))))
    assert base.load({}, varlen=True) is not None
    monkeypatch.setattr(levers, "_known", {})
    monkeypatch.setenv("LLMFT_CACHE", str(tmp_path / "another"))
    monkeypatch.setattr(Trial, "of", classmethod(lambda *given: 1 / 0))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *given, **named: 1 / 0)
    with pytest.raises(EnvironmentFault, match=r"E201.*no small copy.*ZeroDivisionError"):
        base.load({}, varlen=True)


def test_rows_have_no_token_that_the_output_layer_lacks():
    one = trial("cpmant")  # whose embedding has 1024 rows more
    assert one.model.get_input_embeddings().weight.shape[0] == 512 + 1024
    assert max(max(row.input_ids) for row in one.rows) < 512
    assert one.wrong(levers.NONE)  # it reads no mask


def test_a_model_whose_tokens_see_later_ones_is_refused(monkeypatch, tmp_path):
    one_way = trial("xlnet", attn_type="uni")
    assert not one_way.looks_ahead()
    config = small_config(CONFIG_MAPPING["xlnet"]())
    assert Trial.of(config, "eager").looks_ahead().startswith("what follows token 7 changes")
    monkeypatch.setenv("LLMFT_CACHE", str(tmp_path))
    with pytest.raises(EnvironmentFault, match=r"E201.*\(xlnet\) sees the tokens that it is to"):
        base_model.proven_levers(ModelSource(path="m"), config)


def test_a_model_that_scales_its_embeddings_in_place_can_be_tried():
    assert levers.found_by(trial("ctrl"), "float32").cached_decoding


def test_what_follows_from_a_size_follows_from_the_small_one():
    made = small_config(CONFIG_MAPPING["zamba2"]())
    assert (made.mamba_headdim, made.attention_hidden_size) == (2 * 64 // 8, 2 * 64)


def test_sizes_that_do_not_fit_together_are_left_and_the_copy_is_shallow(monkeypatch):
    monkeypatch.setattr(tiny_configs, "BY_TYPE", {})
    config = CONFIG_MAPPING["zamba"](hidden_size=256, intermediate_size=512, num_hidden_layers=12)
    one = Trial.of(config, "eager")
    assert (one.model.config.hidden_size, one.model.config.num_hidden_layers) == (256, 4)
    assert set(one.model.config.layers_block_type) == set(config.layers_block_type)
    assert not one.wrong(levers.NONE)


@pytest.mark.parametrize("kind", ["emu3", "mllama"])
@pytest.mark.parametrize("alone", [False, True])
def test_a_text_that_only_the_whole_model_is_known_by_can_be_tried(kind, alone):
    config = CONFIG_MAPPING[kind]()
    assert type(config.get_text_config()) not in MODEL_FOR_CAUSAL_LM_MAPPING
    one = Trial.of(config.get_text_config() if alone else config, "sdpa")
    assert type(one.model) is MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    assert not one.wrong(levers.NONE)


def test_a_token_id_that_has_to_be_a_number_is_one():
    assert small_config(CONFIG_MAPPING["emu3"]()).pad_token_id == 0
    assert small_config(CONFIG_MAPPING["llama"](pad_token_id=20_000)).pad_token_id is None


def test_attention_refuses_what_it_does_not_know():
    q = torch.zeros(1, 2, 4, 8)
    bounds = torch.tensor([0, 4])
    with pytest.raises(ValueError, match="does not know s_aux"):
        attention.varlen_attention(None, q, q, q, None, cu_seq_lens_q=bounds, s_aux=torch.ones(2))
    with pytest.raises(ValueError, match="no mask"):
        attention.varlen_attention(None, q, q, q, torch.ones(4, 4), cu_seq_lens_q=bounds)
