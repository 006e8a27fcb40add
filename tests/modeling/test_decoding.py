"""Drawing answers: from the right distribution, whatever the batch, and to their end."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from llmft_adapters.lora import Lora
from llmft_adapters.prefix import Prefix
from llmft_adapters.prompt import PromptTuning
from llmft_adapters.ptuning import PTuning

from llmft.api import Encoded, SamplingParams, StageError
from llmft.modeling import attention, decoding
from llmft.modeling.decoding import Stopped, decode, log_probabilities
from llmft.modeling.decoding import sampled as sampled_ids
from llmft.modeling.levers import ALL, ATTRIBUTE
from llmft.modeling.tiny_configs import small_config
from llmft.modeling.tiny_models import tiny_llama
from llmft.modeling.token_stats import token_stats
from llmft.testing import measures
from llmft.testing.tiny_architectures import ARCHITECTURES, tiny

PROMPTS = [[5, 6, 7, 8, 9, 10], [11, 12], [11, 12], [21, 22, 23, 24], [31]]
ADAPTERS = {
    "lora": (Lora, {"r": 4}),
    "prefix": (Prefix, {"num_virtual_tokens": 3}),
    "ptuning": (PTuning, {"num_virtual_tokens": 3, "encoder_hidden_size": 16}),
    "prompt": (PromptTuning, {"num_virtual_tokens": 3}),
}


@pytest.fixture(autouse=True)
def _one_thread():
    with measures.one_thread():
        yield


def adapted(method: str, base):
    cls, settings = ADAPTERS[method]
    adapter = cls(cls.Config.model_validate({"method": method, **settings}))
    torch.manual_seed(3)
    model = adapter.attach(base.requires_grad_(False))
    measures.nudge(model)
    return model.eval()


def rows_of(prompts, answers):
    return [
        Encoded((*prompt, *answer.ids), (*[-100] * len(prompt), *answer.ids))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


@pytest.mark.parametrize("top_p", [1.0, 0.6])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("method", list(ADAPTERS))
def test_the_ratio_of_the_first_minibatch_is_1_with_every_adapter(method, packed, top_p):
    """What a token was drawn with, and what the update's forward pass gives it, are the same."""
    base = tiny_llama()
    if packed:
        attention.register()
        base.set_attn_implementation(attention.NAME)
    model = adapted(method, base)
    params = SamplingParams(9, temperature=0.8, top_p=top_p, stop_token_ids=(256, 3, 4))
    answers = decode(model, PROMPTS, params, seed=(1,), keep_nuclei=top_p < 1, batch_size=3)
    nuclei = [ids for answer in answers for ids in answer.nuclei]
    with torch.no_grad():
        found = token_stats(model, rows_of(PROMPTS, answers), 0.8, nuclei=nuclei or None)
    drawn_ids = [token for answer in answers for token in answer.ids]
    assert all(token in ids for token, ids in zip(drawn_ids, nuclei, strict=bool(nuclei)))
    sampled = torch.tensor([logp for answer in answers for logp in answer.logps])
    ratio = torch.exp(found.logps_N - sampled)
    torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_an_answer_does_not_depend_on_its_batch(architecture):
    model = tiny(architecture)
    params = SamplingParams(12, stop_token_ids=tuple(range(0, 300, 9)))
    together = decode(model, PROMPTS, params, seed=(4, 2), batch_size=5)
    alone = [decode(model, [p], params, seed=(4, 2), batch_size=1, numbers=[n])[0]
             for n, p in enumerate(PROMPTS)]  # fmt: skip
    assert [a.ids for a in together] == [a.ids for a in alone]
    assert together[1].ids != together[2].ids  # the same prompt, other random numbers
    with torch.no_grad():
        found = token_stats(model, rows_of(PROMPTS, together), 1.0)
    sampled = torch.tensor([logp for answer in together for logp in answer.logps])
    torch.testing.assert_close(found.logps_N, sampled, atol=1e-4, rtol=1e-4)


def test_an_answer_stops_at_its_end_and_says_so():
    params = SamplingParams(20, stop_token_ids=tuple(range(0, 300, 4)))
    answers = decode(tiny_llama(), PROMPTS, params, batch_size=2)
    assert any(a.ended for a in answers)
    for answer in answers:
        assert answer.ended == (answer.ids[-1] % 4 == 0)
        assert all(token % 4 for token in answer.ids[:-1])
        assert len(answer.ids) == len(answer.logps) <= 20


def test_temperature_0_is_greedy_and_the_same_as_transformers():
    from transformers import GenerationConfig

    model = tiny_llama()
    prompts = [[5, 6, 7], [11, 12, 13]]
    found = decode(model, prompts, SamplingParams(8, temperature=0.0), batch_size=2)
    config = GenerationConfig(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
    ids = torch.tensor(prompts)
    wanted = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
    )
    assert [a.ids for a in found] == wanted[:, 3:].tolist()


def test_greedy_takes_the_largest_logit_where_likelihoods_are_rounded_to_one_number(monkeypatch):
    logits = torch.full((1, 300), -0.01)
    logits[0, 9] = 0.01
    logits[0, 4] = logits[0, 9].nextafter(torch.tensor(0.0))
    params = SamplingParams(1, temperature=0.0)
    logps = log_probabilities(logits, params)
    assert logps[0, 4] == logps[0, 9] == logps.max()
    monkeypatch.setattr(decoding, "reader", lambda *_: SimpleNamespace(logits=logits))
    assert decode(tiny_llama(), [[5]], params, batch_size=1)[0].ids == [9]


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logps = torch.log_softmax(torch.tensor([[2.0, 0.0, -1.0, 1.0, -torch.inf]]), 1)
    rolls = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = torch.bincount(sampled_ids(logps.expand(len(rolls), -1), rolls), minlength=5)
    torch.testing.assert_close(
        counts / len(rolls), logps[0].exp(), atol=0.01, rtol=0, check_dtype=False
    )
    assert counts[4] == 0
    ends = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    assert sampled_ids(logps.expand(2, -1), ends).tolist() == [0, 3]


def test_top_k_and_top_p_leave_a_distribution_of_the_rest():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    by_p = log_probabilities(logits, SamplingParams(1, top_p=0.7)).exp()
    torch.testing.assert_close(by_p, torch.tensor([[0.625, 0.375, 0.0, 0.0]]))
    by_k = log_probabilities(logits, SamplingParams(1, top_k=3)).exp()
    torch.testing.assert_close(by_k, torch.tensor([[0.5, 0.3, 0.15, 0.0]]) / 0.95)


def test_a_module_that_keeps_no_cache_answers_the_same():
    class Strange(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.config = base, base.config

        def forward(self, input_ids, attention_mask):
            return self.base(input_ids=input_ids, attention_mask=attention_mask)

    params = SamplingParams(6, stop_token_ids=(1, 2, 3))
    base = tiny_llama()
    with_cache = decode(base, PROMPTS, params, seed=(9,), batch_size=5)
    without = decode(Strange(base), PROMPTS, params, seed=(9,), batch_size=5)
    assert [a.ids for a in with_cache] == [a.ids for a in without]


@pytest.mark.parametrize("kind", ["granitemoehybrid", "bamba"])
def test_a_model_of_recurrent_layers_alone_answers_without_a_cache(kind):
    """transformers fails where it counts what a cache of such layers holds."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config = small_config(CONFIG_MAPPING[kind]())
    assert set(config.layer_types) == {"linear_attention"}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    setattr(model, ATTRIBUTE, replace(ALL, cached_decoding=False))
    (answer, *_) = decode(model, PROMPTS, SamplingParams(4), seed=(9,), batch_size=5)
    ids = torch.tensor([[*PROMPTS[0], *answer.ids]])
    with torch.no_grad():
        logps = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    at = range(len(PROMPTS[0]) - 1, ids.shape[1] - 1)
    wanted = [float(logps[n, ids[0, n + 1]]) for n in at]
    assert answer.logps == pytest.approx(wanted, abs=1e-4)


def test_it_stops_between_two_tokens_when_asked_to():
    asked = iter([False, False, True])
    with pytest.raises(Stopped):
        decode(tiny_llama(), PROMPTS, SamplingParams(9), batch_size=5, stopping=lambda: next(asked))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_answers_no_numbers_is_an_error_and_no_crash(temperature):
    model = tiny_llama()
    model.get_output_embeddings().weight.data[7] = float("nan")
    with pytest.raises(StageError, match=r"E301.*not finite"):
        decode(model, PROMPTS, SamplingParams(9, temperature=temperature), batch_size=5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_id_beyond_the_given_vocabulary_is_taken(temperature):
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[100:] *= 1000
    params = SamplingParams(20, temperature)
    free = decode(model, PROMPTS, params, batch_size=2)
    assert max(max(answer.ids) for answer in free) >= 100
    bound = decode(model, PROMPTS, replace(params, vocabulary=100), batch_size=2)
    assert max(max(answer.ids) for answer in bound) < 100
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight[:100])  # it has no others
    narrow = decode(model, PROMPTS, params, batch_size=2)
    assert [answer.ids for answer in bound] == [answer.ids for answer in narrow]
