"""Each shortcut of the forward pass is proved against each row alone in plain transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import CONFIG_MAPPING

from llmft.modeling import attention, levers
from llmft.modeling.lever_trial import Trial
from llmft.modeling.tiny_configs import small_config

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
    return Trial.of(config, "eager" if kind in ("gpt_oss",) else "sdpa")


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


def test_a_config_of_which_no_small_copy_can_be_made_takes_the_plainest_path(monkeypatch, tmp_path):
    monkeypatch.setenv("LLMFT_CACHE", str(tmp_path))
    monkeypatch.setattr(Trial, "of", classmethod(lambda *given: 1 / 0))
    found = levers.proven(CONFIG_MAPPING["llama"](num_hidden_layers=3), "sdpa")
    assert found.off() == list(levers._WORDS.values())
    assert "ZeroDivisionError" in found.remark("llama")


def test_attention_refuses_what_it_does_not_know():
    q = torch.zeros(1, 2, 4, 8)
    bounds = torch.tensor([0, 4])
    with pytest.raises(ValueError, match="does not know s_aux"):
        attention.varlen_attention(None, q, q, q, None, cu_seq_lens_q=bounds, s_aux=torch.ones(2))
    with pytest.raises(ValueError, match="no mask"):
        attention.varlen_attention(None, q, q, q, torch.ones(4, 4), cu_seq_lens_q=bounds)
