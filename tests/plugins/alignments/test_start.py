"""Preference training starts where its reference is: dropout off, one precision, checked."""

from __future__ import annotations

import math

import pytest
import torch

from llmft.api.errors import LlmftError
from llmft.modeling.dropout import without_dropout
from llmft.modeling.tiny_models import tiny_gpt2, tiny_llama, tiny_model_folder

from .conftest import metrics_of

LN2 = math.log(2)


@pytest.fixture
def sft(stage, pairs_file, tmp_path):
    import json

    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    path = tmp_path / "sft.jsonl"
    text = [json.dumps({"prompt": r["prompt"], "completion": r["chosen"]}) for r in rows]
    path.write_text("\n".join(text))
    return stage(
        "sft",
        data={"method": "jsonl", "path": str(path)},
        adapter={"method": "lora", "r": 4, "lora_dropout": 0.3},
        evaluate=None,
    )


def first_loss(summary, name):
    return metrics_of(summary, name)[0]["loss"]


def test_dpo_after_sft_with_dropout_starts_at_ln_2(run, stage, sft):
    summary = run(sft, stage("dpo", start_from="sft", evaluate=None))
    first = metrics_of(summary, "dpo")[0]
    assert first["loss"] == pytest.approx(LN2, abs=1e-5)
    assert first["rewards/chosen"] == pytest.approx(0, abs=1e-5)


def test_with_disable_dropout_false_dropout_acts(run, stage, sft):
    options = {"disable_dropout": False, "beta": 10.0}
    summary = run(sft, stage("dpo", start_from="sft", options=options, evaluate=None))
    assert abs(first_loss(summary, "dpo") - LN2) > 1e-3


def test_the_base_s_own_dropout_is_off_too(run, stage, tmp_path):
    model = tiny_gpt2()
    model.config.attn_pdrop = model.config.resid_pdrop = model.config.embd_pdrop = 0.4
    folder = tiny_model_folder(tmp_path / "gpt2", model)
    summary = run(stage("dpo", evaluate=None), model={"path": str(folder)})
    assert first_loss(summary, "dpo") == pytest.approx(LN2, abs=1e-5)


def test_orpo_s_kl_is_0_at_first(run, stage, sft):
    options = {"kl_coef": 0.1}
    summary = run(sft, stage("orpo", start_from="sft", options=options, evaluate=None))
    assert metrics_of(summary, "orpo")[0]["kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("where", ["bf16", "dtype"])
def test_in_bfloat16_the_reference_is_computed_as_the_policy_is(run, stage, model_folder, where):
    one = stage("dpo", options={"beta": 0.5}, evaluate=None)
    one["train"] |= {"bf16": where == "bf16", "learning_rate": 1e-9}
    dtype = {"dtype": "bfloat16"} if where == "dtype" else {}
    summary = run(one, model={"path": str(model_folder), **dtype})
    assert first_loss(summary, "dpo") == pytest.approx(LN2, abs=2e-3)


@pytest.mark.parametrize("method", ["dpo", "orpo"])
def test_a_policy_that_is_not_its_reference_stops_the_run(run, stage, monkeypatch, method):
    from llmft_alignments import start

    whole = start.answer_logps
    monkeypatch.setattr(start, "answer_logps", lambda *given: whole(*given) + 0.05)
    options = {"kl_coef": 0.1} if method == "orpo" else {}
    with pytest.raises(LlmftError, match=r"E307.*before the first step the policy is not its"):
        run(stage(method, options=options, evaluate=None))


@pytest.mark.parametrize("size", [8, 1])
def test_the_start_is_compared_on_pairs_batched_as_their_reference(run, stage, monkeypatch, size):
    from llmft_alignments import start
    from llmft_alignments.dpo import reference

    judged, policy = [], []
    of_reference, of_policy = reference.pair_logps, start.answer_logps
    monkeypatch.setattr(
        reference, "pair_logps", lambda *given: (judged.append(given[1]), of_reference(*given))[1]
    )
    monkeypatch.setattr(
        start, "answer_logps", lambda *given: (policy.append(given[1]), of_policy(*given))[1]
    )
    one = stage("dpo", evaluate=None)
    one["train"]["per_device_eval_batch_size"] = size
    run(one)
    assert [len(pairs) for pairs in policy] == [min(size, 2)]
    assert policy[0] == judged[0]
    assert len(judged[1]) == (8 if size == 8 else 1)


def test_an_adapter_that_starts_elsewhere_is_not_asked(run, stage, monkeypatch):
    from llmft_alignments import start

    monkeypatch.setattr(start, "answer_logps", lambda *given: 1 / 0)
    run(stage("dpo", adapter={"method": "prompt", "num_virtual_tokens": 2}, evaluate=None))
    run(stage("dpo", adapter={"method": "lora", "r": 2, "init_lora_weights": False}, evaluate=None))


def test_the_reward_model_drops_nothing_out(run, stage):
    def loss(dropout, off):
        lora = {"method": "lora", "lora_dropout": dropout, "init_lora_weights": False}
        options = {"disable_dropout": off}
        return first_loss(run(stage("reward", options=options, adapter=lora)), "reward")

    losses = loss(0.5, True), loss(0.0, True), loss(0.5, False)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert abs(losses[2] - losses[0]) > 1e-6


def test_without_dropout_finds_every_place_and_puts_it_back():
    model = tiny_llama()
    layer = model.model.layers[0]
    model.config.attention_dropout = layer.self_attn.attention_dropout = 0.3
    layer.mlp.router_jitter_noise, layer.layerdrop = 0.1, 0.2
    layer.mlp.some = torch.nn.Dropout(0.5)
    with without_dropout(model) as count:
        assert count == 5
        assert model.config.attention_dropout == layer.self_attn.attention_dropout == 0
        assert layer.mlp.router_jitter_noise == layer.layerdrop == layer.mlp.some.p == 0
    assert layer.mlp.some.p == 0.5
    assert (layer.layerdrop, model.config.attention_dropout) == (0.2, 0.3)
